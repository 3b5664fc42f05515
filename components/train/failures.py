"""The reason of a failed group of workers, in one sentence."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from components.context import read_lines
from components.errors import PenstockError, StageError, as_disk_full, name_error
from components.train.checkpoint import steps_in

RESTARTS_NAME = "restarts.jsonl"
"""One line for each time a group was started again, in the job's work folder."""


def first_failure(failures: Mapping[int, BaseException]) -> PenstockError:
    """Our own error as it was raised, else the words of the first worker.

    When one worker fails, the others report broken connections; an error of ours is the cause of those.

    Args:
        failures: What was raised, by rank.
    """
    causes = [root_cause(failure) for _, failure in sorted(failures.items())]
    for cause in causes:
        if isinstance(cause, PenstockError):
            return cause
    for cause in causes:
        if (full := as_disk_full(cause, "where a worker writes")) is not None:
            return full
    return StageError(
        f"Training failed in a worker: {name_error(causes[0])}." if causes else "Training failed; see the stage's log."
    )


def root_cause(error: BaseException) -> BaseException:
    """The error a worker raised, out of Ray's wrappings."""
    while True:
        inner = getattr(error, "cause", None) or getattr(error, "_cause", None)
        if not isinstance(inner, BaseException):
            return error
        error = inner


def count_restarts(work_folder: Path) -> int:
    """How often the group of a job was started again after a loss."""
    return len(read_lines(work_folder / RESTARTS_NAME))


def count_preemptions(work_folder: Path) -> int:
    """How many of those were no loss: a machine was to be taken away, and the group had written a checkpoint."""
    return sum(bool(line.get("preempted")) for line in read_lines(work_folder / RESTARTS_NAME))


def newest_step(work_folder: Path) -> int:
    """Of the checkpoints of a job; 0 if there is none."""
    return max(steps_in(work_folder / "checkpoints"), default=0)
