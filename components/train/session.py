"""What a worker trains with, and how it is put together: from nothing, or from the newest whole checkpoint."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.artifacts.dataset import open_split
from components.errors import CheckpointError, PenstockError
from components.models.build import build_model
from components.models.folder import count_parameters
from components.tasks import get_task
from components.tasks.base import Task
from components.train.checkpoint import CheckpointFolder
from components.train.device import Placement, apply_placement, detect_hardware, plan_placement
from components.train.engine import Engine, EngineSettings, choose_engine, make_engine
from components.train.feed import Feed
from components.train.group import Group
from components.train.job import TrainJob, Worker
from components.train.meter import Meter
from components.train.order import BatchShape, epoch_order, micro_batch
from components.train.precision import choose_precision
from components.train.randomness import load_states, save_states, seed_everything
from components.train.result import job_digest, weights_folder

if TYPE_CHECKING:
    from torch import nn

BEST_NAME = "best.safetensors"


@dataclass
class Progress:
    """Where a training stands; kept in every checkpoint.

    Attributes:
        epoch: Finished epochs.
        best_epoch: 0 until the first validation.
        best_metrics: Validation metrics of that epoch.
        improved_epoch: Last one in which the deciding metric improved; `early_stop` counts from it.
        history: One dict an epoch.
        precision: What `choose_precision` found, once and for all.
    """

    epoch: int = 0
    best_epoch: int = 0
    improved_epoch: int = 0
    best_metrics: dict[str, float] = field(default_factory=dict)
    history: list[dict[str, float]] = field(default_factory=list)
    precision: dict[str, Any] = field(default_factory=dict)


@dataclass
class Session:
    """Everything one worker trains with."""

    job: TrainJob
    worker: Worker
    task: Task
    group: Group
    engine: Engine
    shape: BatchShape
    training: Feed
    validation: Feed
    checkpoints: CheckpointFolder
    progress: Progress
    meter: Meter
    facts: dict[str, Any]

    @property
    def step(self) -> int:
        """Optimizer steps of the finished epochs."""
        return self.progress.epoch * self.shape.steps_per_epoch

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
    training = Feed(open_split(job.dataset, "train"), preprocessing, placement.device)
    validation = Feed(open_split(job.dataset, "validation"), preprocessing, placement.device)
    shape = batch_shape(job, worker, len(training))
    checkpoints = CheckpointFolder(
        job.work_folder / "checkpoints", job.key_file, job_digest(job), worker.world_size, job.train.keep_checkpoints
    )
    found = agree_on_checkpoint(checkpoints, group, worker)
    progress = Progress(**found["state"]) if found else Progress()
    # Weights are drawn alike on every rank and at any world size; from then on each rank draws its own dropout.
    seed_everything(job.seed, rank=0)
    module = build_model(job.model, preprocessing.model_inputs(), len(preprocessing.classes))
    facts = describe(job, worker, placement, module)
    if not progress.precision:
        progress.precision = group.broadcast(probe_precision(job, placement, module, training, task, shape))
    engine = make_engine(module, engine_settings(job, worker, placement, progress))
    seed_everything(job.seed, worker.rank)
    meter = Meter(
        job.train.epochs * shape.steps_per_epoch, shape.global_batch_size, progress.epoch * shape.steps_per_epoch
    )
    session = Session(
        job, worker, task, group, engine, shape, training, validation, checkpoints, progress, meter, facts
    )
    facts["precision"] = progress.precision
    facts["resumed_from_step"] = session.step if found else None
    if found:
        restore(session, Path(found["folder"]))
    return session


def batch_shape(job: TrainJob, worker: Worker, rows: int) -> BatchShape:
    return BatchShape(rows, job.train.global_batch_size, job.train.gradient_accumulation_steps, worker.world_size)


def engine_settings(job: TrainJob, worker: Worker, placement: Placement, progress: Progress) -> EngineSettings:
    return EngineSettings(job.train, placement, progress.precision["precision"], worker.rank, worker.world_size)


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


def probe_precision(
    job: TrainJob, placement: Placement, module: nn.Module, training: Feed, task: Task, shape: BatchShape
) -> dict[str, Any]:
    """Chooses the precision on the first micro batch of the training."""
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
    return {"found": found and {"folder": str(found.folder), "state": dict(found.state)}}


def warn(worker: Worker, text: str) -> None:
    """Tells the user through the worker, if it has a way to; else the log."""
    import logging

    tell: Callable[[str], None] = getattr(worker, "warn", logging.getLogger(__name__).warning)
    tell(text)


def restore(session: Session, folder: Path) -> None:
    """Loads a checkpoint that was checked: engine, generators, and the best weights so far."""
    session.engine.load(folder)
    load_states(folder / states_name(session.group.rank))
    if session.group.rank == 0:
        session.best_weights().parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(folder / BEST_NAME, session.best_weights())
    session.group.barrier()


def save(session: Session) -> None:
    """Writes a checkpoint of the epoch that just ended; every rank calls it."""
    epoch, group = session.progress.epoch, session.group
    if group.rank == 0:
        session.checkpoints.begin(epoch)
    group.barrier()
    folder = session.checkpoints.partial_path(epoch)
    session.engine.save(folder)
    save_states(folder / states_name(group.rank))
    group.barrier()
    if group.rank == 0:
        shutil.copyfile(session.best_weights(), folder / BEST_NAME)
        session.checkpoints.commit(epoch, asdict(session.progress))
    group.barrier()


def states_name(rank: int) -> str:
    return f"random.rank{rank}.json"
