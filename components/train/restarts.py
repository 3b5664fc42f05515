"""What becomes of a training group when a worker fails: a lost worker is replaced, a mistake ends the training."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch.distributed as dist
from ray.exceptions import RayActorError
from ray.train import UserCallback
from ray.train.v2._internal.exceptions import (
    WorkerGroupStartupTimeoutError,
    WorkerHealthCheckFailedError,
    WorkerHealthCheckTimeoutError,
)

from components.context import Context, append_line
from components.errors import PenstockError, StageError, name_error
from components.train.failures import RESTARTS_NAME, first_failure, newest_step, root_cause

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

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Called once for each failure of the group.

        Raises:
            PenstockError: If starting again would not help: the training's own error, or too many losses in a row.
        """
        reason = name_loss(worker_exceptions)
        if reason is None:
            own = {rank: error for rank, error in worker_exceptions.items() if not is_broken_connection(error)}
            raise first_failure(own)
        newest = newest_step(self.work_folder)
        self.in_vain = 1 if newest > self.newest else self.in_vain + 1
        self.newest = newest
        if self.in_vain > self.limit:
            raise StageError(
                f"{reason}, and training did not get past step {newest} in {self.limit} restarts "
                "(train.max_restarts); see the stage's log. The same command goes on from there.",
                field="train.max_restarts",
            )
        append_line(self.work_folder / RESTARTS_NAME, {"time": time.time(), "step": newest, "reason": reason})
        self.context.warn(f"{reason}; training goes on from step {newest}.")


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
    cause = root_cause(error)
    return isinstance(cause, dist.DistError) or any(words in str(cause) for words in BROKEN_CONNECTION)


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
