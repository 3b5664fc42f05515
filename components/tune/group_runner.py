"""Runs trials that are sharded over several workers: standing Ray Train groups that take trial after trial.

A group is one Ray Train run: its workers are placed together or not at all (one placement group), so two half-placed
trials can never wait for each other. It costs some 15 s to start and serves many trials; between two of them nothing is
started. Rank 0 of a group asks the sweep through a mailbox, in this process every answer is given.

    worker (rank 0)  --ask-->  Mailbox (Ray actor)  --take-->  this process: next trial, report, end
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from components.errors import DiskFullError, PenstockError, StageError, first_line
from components.ray_connection import connect_ray
from components.train.device import Hardware, Placement, places, plan_placement
from components.train.failures import first_failure, root_cause
from components.train.group import Group
from components.train.launch import GROUP_VARIABLES, cluster_hardware, cluster_machines, resources, wait_for_room
from components.tune.runners import LOST_REASON, deliver, machine_was_lost, remove_checkpoints
from components.tune.sweep import Sweep
from components.tune.trial import TrainFunction, TrialSettings, TrialStopped, measure, train_whole

TAKE_WAIT_S = 1.0
IDLE_WAIT_S = 0.3
"""A group for which there is nothing to do (a population that waits) asks again after this."""
LOSS_WAIT_S = 10.0
"""A broken connection is heard of before Ray knows of the machine or the process that is gone."""
DEAD_REASON = "one of its worker processes died (killed, or crashed in native code)"
MAX_IDLE_STARTS = 3
"""Groups that died one after the other without having been given a trial: then something else is wrong."""


@dataclass(frozen=True)
class GroupPlan:
    """How many groups stand side by side, and how each of their workers is placed."""

    count: int
    placement: Placement


def plan_groups(machines: Sequence[Hardware], workers: int, concurrency: int | None, trials: int) -> GroupPlan:
    """Divides a cluster's machines among groups of `workers` workers, with a GPU each where there are any, or a core.

    Raises:
        StageError: If not even one group fits.
    """
    room = places(machines)
    if room < workers:
        unit = "GPUs" if any(machine.gpus for machine in machines) else "cores"
        raise StageError(
            f"tune.workers is {workers}, but the Ray cluster has {room} {unit}; lower it or add nodes.", "tune.workers"
        )
    count = max(1, min(room // workers, trials, concurrency or room))
    return GroupPlan(count, plan_placement(cluster_hardware(machines, workers * count), workers * count, "fp32"))


class Mailbox:
    """A Ray actor that holds questions until this process has answered them."""

    def __init__(self) -> None:
        self.questions: asyncio.Queue = asyncio.Queue()
        self.answers: dict[int, asyncio.Future] = {}

    async def ask(self, group: int, question: Mapping[str, Any]) -> Any:
        """Called by rank 0 of a group; returns when it is answered."""
        number = len(self.answers)
        self.answers[number] = asyncio.get_running_loop().create_future()
        await self.questions.put((number, group, dict(question)))
        return await self.answers[number]

    async def take(self) -> list[tuple[int, int, dict[str, Any]]]:
        """Everything that was asked; waits a second for a first question."""
        try:
            first = await asyncio.wait_for(self.questions.get(), TAKE_WAIT_S)
        except TimeoutError:
            return []
        return [first, *(self.questions.get_nowait() for _ in range(self.questions.qsize()))]

    async def answer(self, number: int, value: Any) -> None:
        """Gives an answer back."""
        self.answers[number].set_result(value)


@dataclass
class Groups:
    """The standing groups: the Ray task that holds each, and the trial it runs.

    Attributes:
        tasks: Task -> number of its group.
        trials: Group -> trial it was given.
        workers: Group -> the Ray actor of its rank 0.
        heard_s: Group -> when it last asked or told anything.
        hung: Groups that were ended because they told nothing for too long.
        started: Groups started so far; their numbers are never used again.
    """

    tasks: dict[Any, int] = field(default_factory=dict)
    trials: dict[int, int] = field(default_factory=dict)
    workers: dict[int, Any] = field(default_factory=dict)
    heard_s: dict[int, float] = field(default_factory=dict)
    hung: set[int] = field(default_factory=set)
    started: int = 0
    idle_starts: int = 0


def run_in_groups(
    sweep: Sweep,
    settings: TrialSettings,
    train: TrainFunction,
    concurrency: int | None,
    warn: Callable[[str], None] = lambda text: None,
) -> None:
    """Runs what is left of the sweep, each trial on `settings.workers` workers.

    Raises:
        StageError: If the groups cannot be placed within 30 s, or the sweep itself cannot go on.
    """
    import ray

    connect_ray()
    plan = plan_groups(cluster_machines(), settings.workers, concurrency, sweep.total - sweep.ended)
    wait_for_room(plan.placement, settings.workers * plan.count, field="tune.concurrency")
    remove_checkpoints(sweep, settings)
    mailbox = ray.remote(Mailbox).options(**beside_this_process()).remote()
    groups = Groups()
    while sweep.ended < sweep.total:
        for _ in range(plan.count - len(groups.tasks)):
            _start_group(groups, mailbox, settings, train, plan.placement)
        for number, group, question in ray.get(mailbox.take.remote()):
            mailbox.answer.remote(number, _answer(sweep, settings, groups, group, question))
        _end_hung(groups, settings.report_timeout_s)
        _bury_groups(sweep, settings, groups, warn)
    _dismiss(mailbox, groups)


def beside_this_process() -> dict[str, Any]:
    """Where what belongs to this process runs: on its machine, so that no other that is lost takes it along.

    It takes no core: all that must be placed is Ray Train's own gang.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = ray.get_runtime_context().get_node_id()
    return {"num_cpus": 0, "scheduling_strategy": NodeAffinitySchedulingStrategy(here, soft=False)}


def _start_group(groups: Groups, mailbox: Any, settings: TrialSettings, train: TrainFunction, place: Placement) -> None:
    import ray

    number = groups.started
    hold = ray.remote(hold_group).options(**beside_this_process(), max_retries=0)
    groups.tasks[hold.remote(mailbox, number, settings, train, place)] = number
    groups.started += 1


def _answer(sweep: Sweep, settings: TrialSettings, groups: Groups, group: int, question: dict[str, Any]) -> Any:
    """What a group is told: whether its trial goes on, or its next trial, to wait (a delay), or None to end."""
    if group not in groups.tasks.values():
        # It died after it had asked, and its trial is another's.
        return False if question["kind"] == "message" else None
    groups.heard_s[group] = time.monotonic()
    if question["kind"] == "message":
        return deliver(sweep, question["number"], question["message"])
    groups.idle_starts = 0
    groups.workers[group] = question["worker"]
    before = groups.trials.pop(group, None)
    if before is not None:
        remove_checkpoints(sweep, settings, before)
    trial = sweep.next_trial()
    if trial is None:
        return None if sweep.ended >= sweep.total else {"wait_s": IDLE_WAIT_S}
    groups.trials[group] = trial.number
    return {"number": trial.number, "values": json.dumps(trial.config), "seed": trial.seed}


def _end_hung(groups: Groups, timeout_s: float | None) -> None:
    """Ends groups whose trial told nothing in time: one that lost a worker ends by itself, and gives its room back."""
    import ray

    if timeout_s is None:
        return
    now = time.monotonic()
    for group in groups.trials.keys() - groups.hung:
        if now - groups.heard_s[group] > timeout_s:
            groups.hung.add(group)
            ray.kill(groups.workers[group])


def _bury_groups(sweep: Sweep, settings: TrialSettings, groups: Groups, warn: Callable[[str], None]) -> None:
    """Records the trials of groups that died; new groups take their place."""
    import ray

    ended, _ = ray.wait(list(groups.tasks), num_returns=len(groups.tasks), timeout=0)
    for task in ended:
        group = groups.tasks.pop(task)
        reason = _reason_of(task)
        if group in groups.hung:
            reason = f"it did not report for {settings.report_timeout_s:g} s"
        number = groups.trials.pop(group, None)
        if reason is None:
            continue
        if number is not None:
            folder = settings.folder(number)
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "error.txt").write_text(reason)
            sweep.fail(number, reason, lost=reason == LOST_REASON)
            continue
        groups.idle_starts += 1
        warn(f"A group of {settings.workers} workers ended before it had a trial: {reason}.")
        if groups.idle_starts >= MAX_IDLE_STARTS:
            raise StageError(f"Groups of {settings.workers} workers do not start: {reason}.")


def _reason_of(task: Any) -> str | None:
    """Why a group ended, in one sentence; None if it had nothing more to do.

    Raises:
        StageError: If a disk is full: no trial's fault, and every other one would meet it too.
    """
    import ray

    try:
        ray.get(task)
    except Exception as error:
        cause = root_cause(error)
        if isinstance(cause, DiskFullError):
            raise StageError(f"The search had to stop: {cause.message}") from error
        if machine_was_lost(str(cause)):
            return LOST_REASON
        if "HealthCheck" in str(cause) or "ActorDied" in str(cause):
            return DEAD_REASON
        return first_line(cause)
    return None


def _dismiss(mailbox: Any, groups: Groups) -> None:
    """Tells the groups, which ask for more, that nothing is left, and waits until they have ended."""
    import ray

    while groups.tasks:
        for number, _, question in ray.get(mailbox.take.remote()):
            mailbox.answer.remote(number, None if question["kind"] == "next" else False)
        ended, _ = ray.wait(list(groups.tasks), num_returns=len(groups.tasks), timeout=0)
        for task in ended:
            del groups.tasks[task]


def hold_group(mailbox: Any, number: int, settings: TrialSettings, train: TrainFunction, placement: Placement) -> None:
    """A Ray task: one standing group, until the sweep has nothing more for it or one of its workers fails."""
    # Read when Ray Train is imported.
    for name, value in GROUP_VARIABLES.items():
        os.environ.setdefault(name, value)
    machines = alive_machines()
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
    from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError

    from components.train.process_group import TorchGroup

    trainer = DataParallelTrainer(
        serve_trials,
        train_loop_config={
            "mailbox": mailbox, "group": number, "settings": settings, "train": train, "device": placement.device
        },
        backend_config=TorchGroup(placement.backend),
        scaling_config=ScalingConfig(
            num_workers=settings.workers,
            use_gpu=placement.gpus_per_worker > 0,
            resources_per_worker=resources(placement),
        ),
        run_config=RunConfig(
            name=f"group-{number}",
            storage_path=str(settings.work_folder / "ray"),
            worker_runtime_env={"env_vars": environment} if (environment := settings.train.environment) else {},
            failure_config=FailureConfig(max_failures=0),
        ),
    )  # fmt: skip
    try:
        trainer.fit()
    except WorkerGroupError as error:
        raise name_group_death(error.worker_failures, machines) from None
    except ControllerError as error:
        raise StageError(f"The group could not be run: {first_line(error.controller_failure)}.") from None


def name_group_death(failures: Mapping[int, BaseException], machines: frozenset[str]) -> PenstockError:
    """The trial's own error, or what was lost under it.

    Args:
        failures: What was raised, by rank.
        machines: Those that were there when the group was started.
    """
    from components.train.restarts import DEATHS, is_broken_connection

    told = {rank: error for rank, error in failures.items() if not isinstance(error, DEATHS)}
    own = {rank: error for rank, error in told.items() if not is_broken_connection(error)}
    if own:
        return first_failure(own)
    deadline = time.monotonic() + (LOSS_WAIT_S if told else 0)
    while machines <= alive_machines() and time.monotonic() < deadline:
        time.sleep(IDLE_WAIT_S)
    lost = not machines <= alive_machines() or any(machine_was_lost(str(error)) for error in failures.values())
    return StageError(LOST_REASON if lost else DEAD_REASON)


def alive_machines() -> frozenset[str]:
    import ray

    return frozenset(node["NodeID"] for node in ray.nodes() if node["Alive"])


def serve_trials(config: dict[str, Any]) -> None:
    """What each worker of a group runs: trial after trial, until rank 0 is told that none is left."""
    import ray
    import ray.train

    ranks = ray.train.get_context()
    rank, world_size, local_rank = ranks.get_world_rank(), ranks.get_world_size(), ranks.get_local_rank()
    settings: TrialSettings = config["settings"]
    group = Group(rank, world_size, config["device"])

    me = ray.get_runtime_context().current_actor

    def ask(question: dict[str, Any]) -> Any:
        return ray.get(config["mailbox"].ask.remote(config["group"], question))

    while True:
        # No worker of the group may go ahead: the order is heard by all or the group is dead.
        order = group.broadcast(ask({"kind": "next", "worker": me}) if rank == 0 else None)
        if order is None:
            return
        if "wait_s" in order:
            time.sleep(order["wait_s"])
            continue
        worker = GroupWorker(group, local_rank, order["number"], ask)
        with suppress(TrialStopped):
            run_sharded_trial(settings, order, worker, config["train"])


def run_sharded_trial(
    settings: TrialSettings, order: Mapping[str, Any], worker: GroupWorker, train: TrainFunction
) -> None:
    """One trial on this worker; an error ends the whole group, because its peers may be waiting for this worker."""
    job = settings.job(order["number"], json.loads(order["values"]), order["seed"])
    Path(job.work_folder).mkdir(parents=True, exist_ok=True)
    if settings.measures and worker.rank == 0:
        worker.tell({"state": "measured", "metrics": measure(job, settings.measures)})
    train_whole(settings, job, worker, train, worker.group)
    if worker.rank == 0:
        worker.tell({"state": "finished"})


class GroupWorker:
    """A worker of a sharded trial: rank 0 reports, all hear the answer."""

    def __init__(self, group: Group, local_rank: int, number: int, ask: Callable[[dict[str, Any]], Any]) -> None:
        self.group, self.rank, self.world_size, self.local_rank = group, group.rank, group.world_size, local_rank
        self.number, self.ask = number, ask
        self.pace: dict[str, float] = {}

    def tell(self, message: Mapping[str, Any]) -> Any:
        return self.ask({"kind": "message", "number": self.number, "message": dict(message)})

    def progress(self, step: int, total: int, metrics: Mapping[str, float]) -> None:
        self.pace = {name: metrics[name] for name in ("loss", "samples_per_s") if name in metrics}

    def report(self, epoch: int, metrics: Mapping[str, float]) -> None:
        """Raises TrialStopped on every rank alike, so that none is left waiting in a collective call."""
        goes_on = None
        if self.rank == 0:
            values = {name: float(value) for name, value in metrics.items()}
            goes_on = self.tell({"state": "report", "epoch": epoch, "metrics": values, "pace": self.pace})
        if not self.group.broadcast(goes_on):
            raise TrialStopped
