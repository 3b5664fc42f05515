"""Starts a training: one worker in this process, more as a Ray Train group.

Ray keeps no checkpoints of ours: they lie in the job's work folder, where every worker reads and writes them.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from components.context import Context
from components.errors import CheckpointError, PenstockError, StageError, name_error
from components.ray_connection import connect_ray
from components.train.device import Hardware, Placement, plan_placement
from components.train.job import TrainJob, TrainResult
from components.train.result import read_result

if TYPE_CHECKING:
    from ray.train.v2.api.exceptions import WorkerGroupError

PLACEMENT_TIMEOUT_S = 30.0
POLL_INTERVAL_S = 1.0


@dataclass(frozen=True)
class ContextWorker:
    """A worker whose reports go to the run's events and tracking journal; only rank 0's do."""

    context: Context
    rank: int = 0
    world_size: int = 1
    local_rank: int = 0

    def progress(self, step: int, total: int, metrics: Mapping[str, float]) -> None:
        self.context.event("progress", step, total, metrics)

    def report(self, epoch: int, metrics: Mapping[str, float]) -> None:
        if self.rank == 0:
            self.context.event("metric", epoch, metrics=metrics)
            self.context.track("metrics", step=epoch, metrics=dict(metrics))

    def speed(self, epoch: int, metrics: Mapping[str, float]) -> None:
        self.context.track("metrics", step=epoch, metrics=dict(metrics))

    def warn(self, text: str) -> None:
        self.context.warn(text)


def launch(job: TrainJob, context: Context) -> TrainResult:
    """Trains `job` on `job.train.workers` workers; a finished or interrupted job continues from its work folder.

    Raises:
        StageError: If the workers cannot be placed within 30 s, or training failed: with the first worker's reason.
        CheckpointError: If there were checkpoints, but none that can be used.
    """
    recorded = read_result(job)
    if recorded is not None:
        return recorded
    if job.train.workers == 1 or context.debug:
        return launch_here(job, context)
    return launch_group(job, context)


def launch_here(job: TrainJob, context: Context) -> TrainResult:
    """Trains in this process, as one worker whatever the spec says (`--debug`)."""
    from components.train.loop import train

    alone = job.train.model_copy(update={"workers": 1})
    return train(TrainJob(**{**vars(job), "train": alone}), ContextWorker(context))


def launch_group(job: TrainJob, context: Context) -> TrainResult:
    """Trains as a Ray Train group on the cluster this process is connected to, or that RAY_ADDRESS names."""
    import os

    # Ends a group 2 s earlier; read when Ray Train is imported.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.1")
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError

    connect_ray(log_to_driver=True)
    placement = plan_placement(cluster_hardware(ray.cluster_resources()), job.train.workers, job.train.precision)
    wait_for_room(placement, job.train.workers)
    trainer = TorchTrainer(
        run_worker,
        train_loop_config={"job": job, "context": context},
        torch_config=TorchConfig(backend=placement.backend),
        scaling_config=ScalingConfig(
            num_workers=job.train.workers,
            use_gpu=placement.gpus_per_worker > 0,
            resources_per_worker=resources(placement),
        ),
        run_config=RunConfig(
            name="train",
            storage_path=str(job.work_folder / "ray"),
            failure_config=FailureConfig(max_failures=0),
        ),
    )
    try:
        trainer.fit()
    except WorkerGroupError as error:
        raise first_failure(error) from error
    except ControllerError as error:
        raise StageError(f"The training group could not be run: {name_error(error.controller_failure)}.") from error
    result = read_result(job)
    if result is None:
        raise StageError(f"The training group ended without a result in {job.work_folder}; see the stage's log.")
    return result


def run_worker(config: dict[str, Any]) -> None:
    """What Ray Train runs in each worker."""
    import ray.train

    from components.train.loop import train

    ranks = ray.train.get_context()
    worker = ContextWorker(config["context"], ranks.get_world_rank(), ranks.get_world_size(), ranks.get_local_rank())
    train(config["job"], worker)


def cluster_hardware(resources: Mapping[str, float]) -> Hardware:
    """The whole cluster's GPUs and cores, from what Ray says."""
    return Hardware(gpus=int(resources.get("GPU", 0)), cores=int(resources.get("CPU", 0)))


def resources(placement: Placement) -> dict[str, float]:
    """What Ray reserves for a worker."""
    wanted: dict[str, float] = {"CPU": placement.cpus_per_worker}
    return {**wanted, "GPU": placement.gpus_per_worker} if placement.gpus_per_worker else wanted


def missing_resources(available: Mapping[str, float], placement: Placement, workers: int) -> str | None:
    """What is lacking for all workers ("4 CPU wanted, 2 there"), or None."""
    for name, each in resources(placement).items():
        wanted, there = each * workers, available.get(name, 0)
        if there < wanted:
            return f"{wanted:g} {name} wanted, {there:g} there"
    return None


def wait_for_room(placement: Placement, workers: int) -> None:
    """Returns when the cluster has room for all workers.

    Raises:
        StageError: At once if the whole cluster is too small, after 30 s if others keep it busy.
    """
    import ray

    lacking = missing_resources(ray.cluster_resources(), placement, workers)
    if lacking is not None:
        raise StageError(
            f"train.workers is {workers}, but the Ray cluster is too small ({lacking}); lower train.workers or add "
            "nodes.",
            field="train.workers",
        )
    deadline_s = time.monotonic() + PLACEMENT_TIMEOUT_S
    while (lacking := missing_resources(ray.available_resources(), placement, workers)) is not None:
        if time.monotonic() > deadline_s:
            raise StageError(
                f"{workers} training workers could not be placed within {PLACEMENT_TIMEOUT_S:g} s, because other work "
                f"holds the Ray cluster ({lacking}); wait for it or lower train.workers.",
                field="train.workers",
            )
        time.sleep(POLL_INTERVAL_S)


def first_failure(error: WorkerGroupError) -> PenstockError:
    """The reason of a failed group in one sentence: our own error as it was raised, else the first worker's words.

    When one worker fails, the others report broken connections; an error of ours is the cause of those.
    """
    failures = [root_cause(failure) for _, failure in sorted(error.worker_failures.items())]
    for failure in failures:
        if isinstance(failure, CheckpointError | PenstockError):
            return failure
    return (
        StageError(f"Training failed in a worker: {name_error(failures[0])}.") if failures else StageError(str(error))
    )


def root_cause(error: BaseException) -> BaseException:
    """The error a worker raised, out of Ray's wrappings."""
    while True:
        inner = getattr(error, "cause", None) or getattr(error, "_cause", None)
        if not isinstance(inner, BaseException):
            return error
        error = inner
