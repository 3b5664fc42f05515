"""What a worker trains with, and how it is put together: from nothing, or from the newest whole checkpoint."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.artifacts.dataset import SplitName, open_split, open_tokens
from components.models.build import build_model
from components.models.config import BertConfig, GptConfig, LlamaConfig, T5Config, ViTConfig
from components.models.folder import count_parameters
from components.models.lora import add_adapters, check_lora, lora_of
from components.tasks import get_task
from components.tasks.base import Preprocessing, Task
from components.train.checkpoint import CheckpointFolder
from components.train.device import Placement, Precision, apply_placement, detect_hardware, plan_placement
from components.train.disk import expected_bytes, tight_disk
from components.train.engine import Engine, EngineSettings, build_sharded, choose_engine, make_engine
from components.train.feed import Feed, TokenFeed
from components.train.group import Group
from components.train.job import TrainJob, Worker, warn
from components.train.meter import Meter, StartUp
from components.train.nvme import Swap, open_swap, swap_folder, uses_nvme
from components.train.order import BatchShape, Rounds, epoch_order, micro_batch
from components.train.precision import choose_precision, settled
from components.train.preemption import Lookout
from components.train.progress import Progress
from components.train.randomness import seed_everything
from components.train.result import job_digest, job_values, weights_folder
from components.train.resume import agree_on_checkpoint, restore
from components.train.saving import Saving
from components.train.utilization import Work, describe_work, peak_of
from components.train.watch import Watch

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import nn

    from components.train.average import WeightAverage

MADE_SHARDED = (BertConfig, GptConfig, LlamaConfig, T5Config, ViTConfig)
"""Networks that ZeRO-3 never has whole; it makes the others whole and divides them then."""
PROBED_LAYERS = 2
SEQ_LEN = 256
"""Tokens a sample where `train.seq_len` is not set."""


@dataclass
class Session:
    """Everything one worker trains with."""

    job: TrainJob
    worker: Worker
    task: Task
    group: Group
    engine: Engine
    shape: BatchShape
    rounds: Rounds
    training: Feed | TokenFeed
    validation: Feed | TokenFeed
    checkpoints: CheckpointFolder
    progress: Progress
    meter: Meter
    facts: dict[str, Any]
    bytes_per_token: float | None = None
    """Of a language model's validation split."""
    loss_sum: torch.Tensor | float = 0.0
    """Of this worker's micro batches in the round so far."""
    work: Work | None = None
    """FLOPs of a Transformer."""
    watch: Watch = field(default_factory=Watch)
    average: WeightAverage | None = None
    """Of the weights, where `train.ema` asks for one."""
    lookout: Lookout = field(default_factory=Lookout)
    saved_step: int = 0
    """Of the newest checkpoint."""
    saving: Saving | None = None
    """The checkpoint that is being written."""
    _order: tuple[int, np.ndarray] | None = None

    def order(self, epoch: int) -> np.ndarray:
        """The rows of an epoch in the order of training; the last one asked for is kept."""
        if self._order is None or self._order[0] != epoch:
            self.training.start_epoch(self.job.seed, epoch)
            self._order = (epoch, epoch_order(self.job.seed, epoch, self.shape))
        return self._order[1]

    @contextmanager
    def weights_to_keep(self) -> Iterator[None]:
        """Inside, the module holds what is validated and kept: the average of the weights where there is one."""
        self.group.average_buffers(self.engine.module)
        if self.average is None:
            yield
            return
        with self.average.in_place():
            self.group.average_buffers(self.engine.module)
            yield

    def best_weights(self) -> Path:
        """The best epoch's weights file; there from the first validation on."""
        return weights_folder(self.job) / f"epoch-{self.progress.best_epoch:05d}.safetensors"

    def checkpoint_bytes(self) -> int:
        """What the next checkpoint takes: as much as the newest, or without one by the number of parameters."""
        train = self.job.train
        guess = expected_bytes(self.facts["parameters"], train.optimizer.name, train.ema is not None)
        return self.checkpoints.newest_bytes() or guess

    def close(self) -> None:
        """Ends what still runs; the process may train again."""
        if self.saving is not None:
            self.saving.close()
        self.engine.close()


def open_session(job: TrainJob, worker: Worker) -> Session:
    """Builds data, model and engine, and goes back to the newest checkpoint if there is one."""
    start_up = StartUp()
    placement = plan_placement(detect_hardware(), worker.world_size, job.train.precision, worker.local_rank)
    apply_placement(placement)
    start_up.lap("torch")
    group = Group(worker.rank, worker.world_size, placement.device)
    task = get_task(job.task)
    preprocessing = task.load(job.dataset / "preprocess")
    training = open_feed(job, task, preprocessing, placement, "train")
    validation = open_feed(job, task, preprocessing, placement, "validation")
    shape = batch_shape(job, worker, len(training))
    rounds = plan_rounds(job, shape)
    checkpoints = open_checkpoints(job, worker)
    start_up.lap("data")
    found = agree_on_checkpoint(checkpoints, group, worker)
    progress = begin_progress(found, worker)
    start_up.lap("checkpoint")
    inputs, classes = network_inputs(job, preprocessing), len(preprocessing.classes)
    swap = open_job_swap(job, worker, inputs, classes)
    module = make_module(job, engine_settings(job, worker, placement, "fp32", swap), inputs, classes)
    facts = describe(job, worker, placement, module)
    if lora_of(job.model) is not None:
        add_adapters(module, job.model)
        facts["trainable_parameters"] = count_parameters(module)
    start_up.lap("model")
    if not progress.precision:
        probed = probe_network(job, module, inputs, classes)
        progress.precision = group.broadcast(probe_precision(job, placement, probed, training, task, shape))
    start_up.lap("precision")
    precision = progress.precision["precision"]
    in_fp32 = progress.precision.get("products") == "fp32" and job.train.zero.stage < 3
    engine = make_engine(module, engine_settings(job, worker, placement, precision, swap, in_fp32))
    start_up.lap("engine")
    seed_everything(job.seed, worker.rank)
    seq_len = training.seq_len if isinstance(training, TokenFeed) else None
    meter = Meter(rounds.total_steps, shape.global_batch_size, progress.step, seq_len, start_up=start_up)
    work = describe_work(module)
    if work is not None:
        peak = peak_of(placement.device, "fp32" if in_fp32 else precision, placement.threads)
        meter.peak_flops = peak.flops
        facts.update(peak_tflops=round(peak.flops / 1e12, 3), peak_source=peak.source)
    session = Session(
        job, worker, task, group, engine, shape, rounds, training, validation, checkpoints, progress, meter, facts
    )
    session.work = work
    if job.train.ema is not None:
        from components.train.average import WeightAverage

        session.average = WeightAverage(engine.module, job.train.ema.decay)
    session.bytes_per_token = bytes_per_token(job) if task.packed else None
    start_up.lap("peak_flops")
    facts["start_up_s"] = start_up.laps_s
    facts["begun"] = start_up.begun
    facts["precision"] = progress.precision
    facts["resumed_from_step"] = progress.step if found else None
    if found:
        restore(session, found)
    tight = tight_disk(checkpoints.folder, session.checkpoint_bytes()) if worker.rank == 0 else None
    if tight is not None:
        warn(worker, tight)
    return session


def open_checkpoints(job: TrainJob, worker: Worker) -> CheckpointFolder:
    """Where this job's checkpoints lie, and which of them it may go on from."""
    return CheckpointFolder(
        job.work_folder / "checkpoints",
        job.key_file,
        job_digest(job),
        worker.world_size,
        job.train.keep_checkpoints,
        job_values(job),
        job.accept_changes,
    )


def begin_progress(found: Mapping[str, Any] | None, worker: Worker) -> Progress:
    """Where training stands: at the checkpoint that was found, or at the start."""
    if not found:
        return Progress()
    progress = Progress(**found["state"])
    if found["changes"]:
        progress.accepted += found["changes"]
        if worker.rank == 0:
            warn(worker, f"Goes on from step {progress.step} although changed: {'; '.join(found['changes'])}.")
    return progress


def make_module(job: TrainJob, settings: EngineSettings, inputs: Mapping[str, int], classes: int) -> nn.Module:
    """The network with its first weights, in ZeRO-3 already divided.

    Raises:
        SpecError: If LoRA and this sharding do not go together.
    """
    refused = check_lora(job.model, job.train.zero.stage)
    if refused is not None:
        raise refused
    # Weights are drawn alike on every rank and at any world size; from training on each rank draws its own dropout.
    seed_everything(job.seed, rank=0)
    sharded = isinstance(job.model, MADE_SHARDED)
    with build_sharded(settings) if sharded else nullcontext():
        module = build_model(job.model, inputs, classes)
    if job.train.activation_checkpointing:
        from components.models.transformer import checkpoint_activations

        checkpoint_activations(module)
    return module


def open_feed(
    job: TrainJob, task: Task, preprocessing: Preprocessing, placement: Placement, split: SplitName
) -> Feed | TokenFeed:
    """The samples of a split."""
    if task.packed:
        tokens = open_tokens(job.dataset, split)
        return TokenFeed(tokens, job.train.seq_len or SEQ_LEN, placement.device, shifted=split == "train")
    return Feed(open_split(job.dataset, split), preprocessing, placement.device)


def network_inputs(job: TrainJob, preprocessing: Preprocessing) -> dict[str, int]:
    """What the network is built for: the data's sizes, and a language model's context."""
    context = {"max_length": job.train.seq_len or SEQ_LEN} if get_task(job.task).packed else {}
    return {**preprocessing.model_inputs(), **context}


def bytes_per_token(job: TrainJob) -> float:
    """Of the validation split: what turns nats a token into bits a byte."""
    schema = json.loads((job.dataset / "schema.json").read_text())
    return schema["bytes"]["validation"] / schema["tokens"]["validation"]


def plan_rounds(job: TrainJob, shape: BatchShape) -> Rounds:
    """How many steps there are, and how many between two validations."""
    total = job.train.max_steps or job.train.epochs * shape.steps_per_epoch
    return Rounds(total, min(job.train.validate_every_steps or shape.steps_per_epoch, total))


def batch_shape(job: TrainJob, worker: Worker, rows: int) -> BatchShape:
    return BatchShape(rows, job.train.global_batch_size, job.train.gradient_accumulation_steps, worker.world_size)


def engine_settings(
    job: TrainJob,
    worker: Worker,
    placement: Placement,
    precision: Precision,
    swap: Swap | None = None,
    fp32_products: bool = False,
) -> EngineSettings:
    return EngineSettings(job.train, placement, precision, worker.rank, worker.world_size, swap, fp32_products)


def open_job_swap(job: TrainJob, worker: Worker, inputs: Mapping[str, int], classes: int) -> Swap | None:
    """Where this worker offloads to, if `train.zero` does that to NVMe."""
    if not uses_nvme(job.train.zero):
        return None
    from components.train.plan.network import Workload

    folder = swap_folder(job.train.zero, job.work_folder)
    return open_swap(
        job.train.zero, folder, worker.rank, worker.world_size, Workload(job.task, job.model, inputs, classes)
    )


def describe(job: TrainJob, worker: Worker, placement: Placement, module: nn.Module) -> dict[str, Any]:
    """Facts about how this training runs."""
    return {
        "parameters": count_parameters(module),
        "device": placement.device,
        "threads": placement.threads,
        "workers": worker.world_size,
        "engine": choose_engine(job.train, worker.world_size),
        "zero_stage": job.train.zero.stage,
    }


def probe_network(job: TrainJob, module: nn.Module, inputs: Mapping[str, int], classes: int) -> nn.Module | None:
    """What the precision is tried on: the network itself, or where that is sharded two of its layers.

    None where these are not known from the spec, because the network is a pretrained one.
    """
    if not any(hasattr(value, "ds_id") for value in module.parameters()):
        return module
    if job.model.pretrained is not None:
        return None
    layers = getattr(job.model, "num_hidden_layers", PROBED_LAYERS)
    few = job.model.model_copy(update={"num_hidden_layers": min(layers, PROBED_LAYERS)})
    return build_model(few, inputs, classes)


def probe_precision(
    job: TrainJob,
    placement: Placement,
    module: nn.Module | None,
    training: Feed | TokenFeed,
    task: Task,
    shape: BatchShape,
) -> dict[str, Any]:
    """Chooses the precision on the first micro batch of the training; bf16 if there is nothing to try it on."""
    if module is None:
        precision: Precision = "bf16" if placement.precision == "probe" else placement.precision
        return settled(precision, placement, "set, or the rule for sharded pretrained weights")
    training.start_epoch(job.seed, 0)
    inputs, labels = training.batch(micro_batch(epoch_order(job.seed, 0, shape), 0, 0, 0, shape))
    return choose_precision(placement, module, inputs, lambda logits: task.loss(logits, labels, 0.0))
