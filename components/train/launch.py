"""Starts a training: one worker in this process, more as a Ray Train group.

Ray keeps no checkpoints of ours: they lie in the job's work folder, where every worker reads and writes them.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

from components.context import Context
from components.errors import StageError
from components.ray_connection import connect_ray
from components.train.device import Hardware, Placement, even_share, plan_placement
from components.train.failures import first_failure
from components.train.job import TrainJob, TrainResult
from components.train.preemption import sigterm_asks
from components.train.result import read_result

PLACEMENT_TIMEOUT_S = 30.0
POLL_INTERVAL_S = 1.0
RESIZE_INTERVAL_S = 15.0
"""How often an elastic training looks whether it may grow; growing begins anew from the newest checkpoint."""
GROUP_VARIABLES = {
    # Ends a group 2 s earlier.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.1",
    # A stopped or stuck worker is given up after this; the default is 10 minutes.
    "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": "45",
    # An actor that watches for machines about to be drained, for those who ask it: we hear of that by SIGTERM.
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
}
ELASTIC_VARIABLES = {
    # Right after a loss Ray may still count on the lost machine; it tries a smaller group after this.
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "5",
    # Each look at the workers adds a line to Ray's log.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "1",
}
START_LIMIT = 10
"""Groups that may fail to start, each after Ray's 60 s without room: a lost machine is waited for that long."""
ELASTIC_START_LIMIT = 1000


@dataclass(frozen=True)
class ContextWorker:
    """A worker whose reports go to the run's events and tracking journal; only rank 0's do."""

    context: Context
    rank: int = 0
    world_size: int = 1
    local_rank: int = 0

    def progress(self, step: int, total: int, metrics: Mapping[str, float]) -> None:
        self.context.event("progress", step, total, metrics, workers=self.world_size)

    def report(self, epoch: int, metrics: Mapping[str, float]) -> None:
        if self.rank == 0:
            self.context.event("metric", epoch, metrics=metrics, workers=self.world_size)
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
        PreemptedError: If this process got a SIGTERM; a checkpoint holds the steps that were taken.
    """
    if context.debug:
        job = alone(job)
    recorded = read_result(job)
    if recorded is not None:
        return recorded
    if job.train.workers > 1:
        return launch_group(job, context)
    from components.train.loop import train

    with sigterm_asks(job.work_folder):
        return train(job, ContextWorker(context))


def alone(job: TrainJob) -> TrainJob:
    """The job on one worker (`--debug`), with checkpoints of its own: those of several are another job's."""
    if job.train.workers == 1:
        return job
    train = job.train.model_copy(update={"workers": 1, "min_workers": None})
    return replace(job, train=train, work_folder=job.work_folder / "debug")


def launch_group(job: TrainJob, context: Context) -> TrainResult:
    """Trains as a Ray Train group on the cluster this process is connected to, or that RAY_ADDRESS names.

    A worker that dies is replaced; with `workers: {min, max}` training goes on without it until there is room again.
    """
    import os

    elastic = job.train.min_workers is not None
    # Read when Ray Train is imported.
    for name, value in GROUP_VARIABLES.items():
        os.environ.setdefault(name, value)
    if elastic:
        os.environ.update(ELASTIC_VARIABLES)
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError

    from components.train.group_trainer import GroupTrainer
    from components.train.process_group import TorchGroup
    from components.train.restarts import NoteSigterm, RestartPolicy, name_group_failure

    connect_ray(log_to_driver=True)
    hardware = cluster_hardware(cluster_machines(), job.train.workers)
    placement = plan_placement(hardware, job.train.workers, job.train.precision)
    fewest = job.train.world_sizes()[0]
    wait_for_room(placement, fewest)
    trainer = GroupTrainer(
        run_worker,
        train_loop_config={"job": job, "context": context},
        backend_config=TorchGroup(placement.backend),
        scaling_config=ScalingConfig(
            num_workers=(job.train.min_workers, job.train.workers) if elastic else job.train.workers,
            elastic_resize_monitor_interval_s=RESIZE_INTERVAL_S,
            use_gpu=placement.gpus_per_worker > 0,
            resources_per_worker=resources(placement),
        ),
        run_config=RunConfig(
            name="train",
            storage_path=str(job.work_folder / "ray"),
            worker_runtime_env={"env_vars": job.train.environment} if job.train.environment else {},
            # The policy counts; what it lets pass is tried again.
            failure_config=FailureConfig(
                max_failures=-1, controller_failure_limit=ELASTIC_START_LIMIT if elastic else START_LIMIT
            ),
            callbacks=[RestartPolicy(job.work_folder, context, job.train.max_restarts), NoteSigterm()],
        ),
    )
    try:
        # Here, because Ray takes SIGTERM for itself when it is imported.
        with sigterm_asks(job.work_folder), watch_nodes(lambda: tell_lack(context, placement, fewest)):
            trainer.fit()
    except WorkerGroupError as error:
        raise first_failure(error.worker_failures) from error
    except ControllerError as error:
        raise name_group_failure(error.controller_failure) from error
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


@contextmanager
def watch_nodes(look: Callable[[], None]) -> Iterator[None]:
    """Tells Ray Train of lost and new machines within seconds, and calls `look` after a loss.

    It decides by what its coordinator reserved, which looks at the machines only every 20 s, and there is no setting.
    """
    ended = threading.Event()
    watcher = threading.Thread(target=_tell_of_nodes, args=(ended, look), daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()


def _tell_of_nodes(ended: threading.Event, look: Callable[[], None]) -> None:
    import ray

    known: set[str] | None = None
    while not ended.wait(POLL_INTERVAL_S):
        alive = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
        if known is not None and alive != known:
            with suppress(ValueError):  # a group that is still starting has none
                coordinator = ray.get_actor("AutoscalingCoordinator", namespace="AutoscalingCoordinator")
                coordinator.get_reserved_resources.remote("", True)
            if known - alive:
                look()
        known = alive


def tell_lack(context: Context, placement: Placement, workers: int) -> None:
    """Says so when the machines that are left have no room for the fewest workers."""
    lacking = missing_resources(whole_machines(), placement, workers)
    if lacking is not None:
        context.warn(
            f"A machine was lost, and {workers} workers have no room ({lacking}): training waits for machines."
        )


def whole_machines() -> list[Mapping[str, float]]:
    """What each machine of the cluster has, whoever uses it."""
    import ray

    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def cluster_machines() -> list[Hardware]:
    """The cluster's machines, from what Ray says."""
    return [Hardware(gpus=int(one.get("GPU", 0)), cores=int(one.get("CPU", 0))) for one in whole_machines()]


def cluster_hardware(machines: Sequence[Hardware], workers: int) -> Hardware:
    """The whole cluster's GPUs, and those cores that `workers` workers can share evenly."""
    return Hardware(gpus=sum(machine.gpus for machine in machines), cores=workers * even_share(machines, workers))


def resources(placement: Placement) -> dict[str, float]:
    """What Ray reserves for a worker."""
    wanted: dict[str, float] = {"CPU": placement.cpus_per_worker}
    return {**wanted, "GPU": placement.gpus_per_worker} if placement.gpus_per_worker else wanted


def missing_resources(machines: Iterable[Mapping[str, float]], placement: Placement, workers: int) -> str | None:
    """What is lacking for all workers ("4 CPU wanted, 2 there"), or None.

    Args:
        machines: What each has, or has free.
    """
    machines, each = list(machines), resources(placement)
    for name, amount in each.items():
        wanted, there = amount * workers, sum(machine.get(name, 0) for machine in machines)
        if there < wanted:
            return f"{wanted:g} {name} wanted, {there:g} there"
    room = sum(min(int(machine.get(name, 0) // amount) for name, amount in each.items()) for machine in machines)
    worker = " and ".join(f"{amount:g} {name}" for name, amount in each.items())
    return None if room >= workers else f"{worker} wanted for each on one machine, room for {room} there"


def wait_for_room(placement: Placement, workers: int, field: str = "train.workers") -> None:
    """Returns when the cluster has room for all workers.

    Args:
        field: What the user can lower.

    Raises:
        StageError: At once if the whole cluster is too small, after 30 s if others keep it busy.
    """
    # Ray has no public name for it.
    from ray._private.state import available_resources_per_node

    lacking = missing_resources(whole_machines(), placement, workers)
    if lacking is not None:
        raise StageError(
            f"train.workers is {workers}, but the Ray cluster is too small ({lacking}); lower train.workers or add "
            "nodes.",
            field="train.workers",
        )
    deadline_s = time.monotonic() + PLACEMENT_TIMEOUT_S
    while (lacking := missing_resources(available_resources_per_node().values(), placement, workers)) is not None:
        if time.monotonic() > deadline_s:
            raise StageError(
                f"{workers} training workers could not be placed within {PLACEMENT_TIMEOUT_S:g} s, because other work "
                f"holds the Ray cluster ({lacking}); wait for it or lower {field}.",
                field=field,
            )
        time.sleep(POLL_INTERVAL_S)
