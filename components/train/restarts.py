"""What becomes of a training group when a worker fails: a lost worker is replaced, a mistake ends the training.

A group that stopped because a machine is to be taken away has lost nothing: it is started again, and not counted.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ray.exceptions import RayActorError
from ray.train import UserCallback
from ray.train.v2._internal.exceptions import (
    WorkerGroupStartupTimeoutError,
    WorkerHealthCheckFailedError,
    WorkerHealthCheckTimeoutError,
)
from ray.train.v2._internal.execution.callback import WorkerGroupCallback

from components.context import Context, append_line
from components.errors import PenstockError, PreemptedError, StageError, name_error
from components.memory_kills import count_kills, killed
from components.train.failures import RESTARTS_NAME, first_failure, newest_step, root_cause
from components.train.preemption import group_is_asked, note_sigterm

DEATHS = (WorkerHealthCheckFailedError, WorkerHealthCheckTimeoutError, RayActorError)
BROKEN_CONNECTION = ("gloo/", "Connection closed by peer", "Connection reset by peer")


class RestartPolicy(UserCallback):
    """Lets Ray start the group again after a worker was lost, and ends the training otherwise.

    Ray retries every error alike; one that is raised here it does not.

    Args:
        work_folder: The job's; its checkpoints tell whether a restart got anywhere.
        context: Who is told.
        limit: Restarts in a row that reach no new checkpoint.
    """

    def __init__(self, work_folder: Path, context: Context, limit: int) -> None:
        self.work_folder, self.context, self.limit = work_folder, context, limit
        self.newest, self.in_vain = newest_step(work_folder), 0
        self.kills = count_kills()
        self.out_of_memory = False

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Called once for each failure of the group.

        Raises:
            PenstockError: If starting again would not help: the training's own error, or too many losses in a row.
        """
        if is_preempted(worker_exceptions):
            self.go_on_elsewhere(worker_exceptions)
            return
        reason = name_loss(worker_exceptions)
        if reason is None:
            own = {rank: error for rank, error in worker_exceptions.items() if not is_broken_connection(error)}
            raise first_failure(own)
        reason = self.name_kill(reason)
        newest = newest_step(self.work_folder)
        self.in_vain = 1 if newest > self.newest else self.in_vain + 1
        self.newest = newest
        if self.in_vain > self.limit:
            raise StageError(
                f"{reason}, and training did not get past step {newest} in {self.limit} restarts "
                "(train.max_restarts); see the stage's log. The same command goes on from there.",
                field="train.max_restarts",
            )
        self.tell_restart(reason, newest, preempted=False)

    def name_kill(self, reason: str) -> str:
        """The reason, or that it was the memory: that is tried once more, as another process may have taken it.

        Raises:
            OutOfMemoryError: The second time.
        """
        kills = count_kills()
        if kills == self.kills:
            return reason
        self.kills = kills
        if self.out_of_memory:
            raise killed("A worker, twice,")
        self.out_of_memory = True
        return killed("A worker").message.partition(";")[0]

    def go_on_elsewhere(self, failures: Mapping[int, BaseException]) -> None:
        """Lets a group start again that stopped of its own accord, unless the whole training is to stop."""
        if group_is_asked(self.work_folder):
            raise first_failure(failures)
        newest = newest_step(self.work_folder)
        if newest > self.newest:
            self.newest, self.in_vain = newest, 0
        self.tell_restart("A worker was asked to stop (SIGTERM)", self.newest, preempted=True)

    def tell_restart(self, reason: str, step: int, preempted: bool) -> None:
        record = {"time": time.time(), "step": step, "reason": reason, "preempted": preempted}
        append_line(self.work_folder / RESTARTS_NAME, record)
        self.context.warn(f"{reason}; training goes on from step {step}.")


class NoteSigterm(WorkerGroupCallback):
    """Lets every worker of a group note SIGTERM, which Ray would have end it.

    A handler can be set in the main thread alone: that is where Ray executes this, and not the training.
    """

    def after_worker_group_start(self, worker_group: Any) -> None:
        worker_group.execute(note_sigterm)


def is_preempted(failures: Mapping[int, BaseException]) -> bool:
    """Whether the group stopped because it was asked to; a worker may be gone before it can say so."""
    return any(isinstance(root_cause(error), PreemptedError) for error in failures.values())


def name_loss(failures: Mapping[int, BaseException]) -> str | None:
    """Which worker was lost, in words; None if it was none but the training that failed."""
    if any(isinstance(root_cause(error), PenstockError) for error in failures.values()):
        return None
    dead = [rank for rank, error in sorted(failures.items()) if isinstance(error, DEATHS)]
    if dead:
        return f"Worker {dead[0]} died (killed, crashed in native code, or its machine was lost)"
    # The others may hear of a death before Ray does.
    if failures and all(is_broken_connection(error) for error in failures.values()):
        return f"Worker {min(failures)} lost its connection to the others"
    return None


def is_broken_connection(error: BaseException) -> bool:
    """Whether a collective operation failed because another worker is gone."""
    # Imported here: who leads a group that goes well needs no torch.
    from torch.distributed import DistError

    cause = root_cause(error)
    return isinstance(cause, DistError) or any(words in str(cause) for words in BROKEN_CONNECTION)


def name_group_failure(error: BaseException) -> PenstockError:
    """Why a group could not be run, from what Ray's controller gave up with."""
    cause = root_cause(error)
    if isinstance(cause, PenstockError):
        return cause
    if isinstance(cause, WorkerGroupStartupTimeoutError):
        return StageError(
            f"{cause.num_workers} training workers have had no room for minutes; give the cluster its machines back, "
            "and the same command goes on from the newest checkpoint.",
            field="train.workers",
        )
    return StageError(f"The training group could not be run: {name_error(cause)}.")
