"""What a worker trains with, and how it is put together: from nothing, or from the newest whole checkpoint."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.artifacts.dataset import SplitName, open_split, open_tokens
from components.errors import CheckpointError, PenstockError
from components.models.build import build_model
from components.models.config import BertConfig, GptConfig, LlamaConfig, ViTConfig
from components.models.folder import count_parameters
from components.models.lora import add_adapters, check_lora, lora_of
from components.tasks import get_task
from components.tasks.base import Preprocessing, Task
from components.train.checkpoint import CheckpointFolder
from components.train.device import Placement, Precision, apply_placement, detect_hardware, plan_placement
from components.train.engine import Engine, EngineSettings, build_sharded, choose_engine, make_engine
from components.train.feed import Feed, TokenFeed
from components.train.group import Group
from components.train.job import TrainJob, Worker
from components.train.loss_scale import LossScale
from components.train.meter import Meter
from components.train.order import BatchShape, Rounds, epoch_order, micro_batch
from components.train.precision import choose_precision
from components.train.randomness import load_states, read_loss_sum, save_states, seed_everything
from components.train.reshard import make_universal
from components.train.result import job_digest, weights_folder
from components.train.utilization import Work, describe_work, peak_of
from components.train.watch import Watch

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import nn

    from components.train.average import WeightAverage

BEST_NAME = "best.safetensors"
AVERAGE_NAME = "average.safetensors"
MADE_SHARDED = (BertConfig, GptConfig, LlamaConfig, ViTConfig)
"""Networks that ZeRO-3 never has whole; it makes the others whole and divides them then."""
PROBED_LAYERS = 2
SEQ_LEN = 256
"""Tokens a sample where `train.seq_len` is not set."""


@dataclass
class Progress:
    """Where a training stands; kept in every checkpoint.

    Attributes:
        step: Optimizer steps that were taken.
        epoch: Finished rounds: epochs, unless `train.validate_every_steps` says otherwise.
        best_epoch: 0 until the first validation.
        best_metrics: Validation metrics of that epoch.
        improved_epoch: Last one in which the deciding metric improved; `early_stop` counts from it.
        history: One dict a round.
        precision: What `choose_precision` found, once and for all.
        skipped: Steps whose gradient was not finite; they are left out.
        rollbacks: How often training went back to a checkpoint because of them.
        overflowed: Steps that fp16 had scaled too far; they changed nothing and cost nothing but themselves.
        loss_scale: Of fp16.
        spikes: Steps whose loss was far above those before.
    """

    step: int = 0
    epoch: int = 0
    best_epoch: int = 0
    improved_epoch: int = 0
    best_metrics: dict[str, float] = field(default_factory=dict)
    history: list[dict[str, float]] = field(default_factory=list)
    precision: dict[str, Any] = field(default_factory=dict)
    skipped: list[int] = field(default_factory=list)
    rollbacks: int = 0
    overflowed: list[int] = field(default_factory=list)
    loss_scale: dict[str, Any] | None = None
    spikes: list[int] = field(default_factory=list)


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


def open_session(job: TrainJob, worker: Worker) -> Session:
    """Builds data, model and engine, and goes back to the newest checkpoint if there is one."""
    placement = plan_placement(detect_hardware(), worker.world_size, job.train.precision, worker.local_rank)
    apply_placement(placement)
    group = Group(worker.rank, worker.world_size, placement.device)
    task = get_task(job.task)
    preprocessing = task.load(job.dataset / "preprocess")
    training = open_feed(job, task, preprocessing, placement, "train")
    validation = open_feed(job, task, preprocessing, placement, "validation")
    shape = batch_shape(job, worker, len(training))
    rounds = plan_rounds(job, shape)
    checkpoints = CheckpointFolder(
        job.work_folder / "checkpoints", job.key_file, job_digest(job), worker.world_size, job.train.keep_checkpoints
    )
    found = agree_on_checkpoint(checkpoints, group, worker)
    progress = Progress(**found["state"]) if found else Progress()
    refused = check_lora(job.model, job.train.zero.stage)
    if refused is not None:
        raise refused
    inputs, classes = network_inputs(job, preprocessing), len(preprocessing.classes)
    # Weights are drawn alike on every rank and at any world size; from then on each rank draws its own dropout.
    seed_everything(job.seed, rank=0)
    sharded = isinstance(job.model, MADE_SHARDED)
    with build_sharded(engine_settings(job, worker, placement, "fp32")) if sharded else nullcontext():
        module = build_model(job.model, inputs, classes)
    if job.train.activation_checkpointing:
        from components.models.transformer import checkpoint_activations

        checkpoint_activations(module)
    facts = describe(job, worker, placement, module)
    if lora_of(job.model) is not None:
        add_adapters(module, job.model)
        facts["trainable_parameters"] = count_parameters(module)
    if not progress.precision:
        probed = probe_network(job, module, inputs, classes)
        progress.precision = group.broadcast(probe_precision(job, placement, probed, training, task, shape))
    precision = progress.precision["precision"]
    engine = make_engine(module, engine_settings(job, worker, placement, precision))
    seed_everything(job.seed, worker.rank)
    seq_len = training.seq_len if isinstance(training, TokenFeed) else None
    meter = Meter(rounds.total_steps, shape.global_batch_size, progress.step, seq_len)
    work = describe_work(module)
    if work is not None:
        peak = peak_of(placement.device, precision, placement.threads)
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
    facts["precision"] = progress.precision
    facts["resumed_from_step"] = progress.step if found else None
    if found:
        restore(session, found)
    return session


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


def engine_settings(job: TrainJob, worker: Worker, placement: Placement, precision: Precision) -> EngineSettings:
    return EngineSettings(job.train, placement, precision, worker.rank, worker.world_size)


def describe(job: TrainJob, worker: Worker, placement: Placement, module: nn.Module) -> dict[str, Any]:
    """Facts about how this training runs."""
    return {
        "parameters": count_parameters(module),
        "device": placement.device,
        "threads": placement.threads,
        "workers": worker.world_size,
        "engine": choose_engine(worker.world_size, job.train.zero.stage),
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
        precision = "bf16" if placement.precision == "probe" else placement.precision
        return {"precision": precision, "reason": "set, or the rule for sharded pretrained weights"}
    training.start_epoch(job.seed, 0)
    inputs, labels = training.batch(micro_batch(epoch_order(job.seed, 0, shape), 0, 0, 0, shape))
    return choose_precision(placement, module, inputs, lambda logits: task.loss(logits, labels, 0.0))


def agree_on_checkpoint(checkpoints: CheckpointFolder, group: Group, worker: Worker) -> dict[str, Any] | None:
    """The checkpoint that rank 0 found, told to all ranks, so that none starts from another one.

    Raises:
        CheckpointError: On every rank, if rank 0 could not find one that it may use.
    """
    answer = group.broadcast(look_for_checkpoint(checkpoints, worker) if group.rank == 0 else None)
    if "error" in answer:
        raise CheckpointError(answer["error"])
    return answer["found"]


def look_for_checkpoint(checkpoints: CheckpointFolder, worker: Worker) -> dict[str, Any]:
    """{"found": {"folder", "state"} or None}, or {"error": sentence}."""
    try:
        found = checkpoints.find(partial(warn, worker))
    except PenstockError as error:
        return {"error": error.message}
    if found is None:
        return {"found": None}
    return {"found": {"folder": str(found.folder), "world_size": found.world_size, "state": dict(found.state)}}


def warn(worker: Worker, text: str) -> None:
    """Tells the user through the worker, if it has a way to; else the log."""
    import logging

    tell: Callable[[str], None] = getattr(worker, "warn", logging.getLogger(__name__).warning)
    tell(text)


def restore(session: Session, found: Mapping[str, Any]) -> None:
    """Loads a checkpoint that was checked: engine, generators, and the best weights so far."""
    folder, group = Path(found["folder"]), session.group
    if found["world_size"] == group.world_size:
        session.engine.load(folder)
        session.loss_sum = load_states(folder / states_name(group.rank))
    else:
        restore_resharded(session, folder, found["world_size"])
    if session.progress.loss_scale is not None:
        session.engine.loss_scale = LossScale(**session.progress.loss_scale)
    if session.average is not None:
        session.average.load(folder / AVERAGE_NAME)
    if session.group.rank == 0 and session.progress.best_epoch:
        session.best_weights().parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(folder / BEST_NAME, session.best_weights())
    session.group.barrier()


def restore_resharded(session: Session, folder: Path, world_size: int) -> None:
    """The same from another number of workers: shards are divided anew, each worker goes on from a seed of its own.

    The rows of a step are the same for any number of workers, so nothing is trained twice or left out.
    """
    job, group = session.job, session.group
    universal = job.work_folder / "universal"
    if job.train.zero.stage:
        outcome: dict[str, Any] = {}
        if group.rank == 0:
            try:
                make_universal(folder, universal)
            except CheckpointError as error:
                outcome = {"error": error.message}
        outcome = group.broadcast(outcome)
        if "error" in outcome:
            raise CheckpointError(outcome["error"])
        session.engine.load(universal, universal=True)
        group.barrier()
        if group.rank == 0:
            shutil.rmtree(universal)
    else:
        session.engine.load(folder)
    sums = [read_loss_sum(folder / states_name(rank)) for rank in range(world_size)]
    session.loss_sum = sum(sums) / world_size
    seed_everything(job.seed + session.progress.step, group.rank)
    if group.rank == 0:
        warn(session.worker, f"The checkpoint of step {session.progress.step} was written by {world_size} workers and "
                             f"is now divided among {group.world_size}.")  # fmt: skip


def roll_back(session: Session) -> bool:
    """Goes back to the newest checkpoint, remembering which steps to leave out; False if there is none."""
    skipped, rollbacks = session.progress.skipped, session.progress.rollbacks
    found = agree_on_checkpoint(session.checkpoints, session.group, session.worker)
    if found is None:
        return False
    session.progress = Progress(**found["state"])
    session.progress.skipped = sorted({*session.progress.skipped, *skipped})
    session.progress.rollbacks = rollbacks + 1
    restore(session, found)
    return True


def save(session: Session) -> None:
    """Writes a checkpoint of the step that was just taken; every rank calls it."""
    step, group = session.progress.step, session.group
    if group.rank == 0:
        session.checkpoints.begin(step)
    group.barrier()
    folder = session.checkpoints.partial_path(step)
    session.engine.save(folder)
    save_states(folder / states_name(group.rank), float(session.loss_sum))
    if session.engine.loss_scale is not None:
        session.progress.loss_scale = asdict(session.engine.loss_scale)
    group.barrier()
    if group.rank == 0:
        if session.average is not None:
            session.average.save(folder / AVERAGE_NAME)
        if session.progress.best_epoch:
            shutil.copyfile(session.best_weights(), folder / BEST_NAME)
        session.checkpoints.commit(step, asdict(session.progress))
    group.barrier()


def states_name(rank: int) -> str:
    return f"random.rank{rank}.json"
