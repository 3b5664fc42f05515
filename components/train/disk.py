"""What a full or failing disk does to a training: every worker hears of it, and all wait for space or stop together.

A part of a save that fails on one worker must not leave the others at a barrier, so each part ends with all workers
telling how it went (`together`). Where the disk is full, the part that was written is removed and the whole is tried
again once there is space (`write_patiently`); any other failure ends the training with what, where and why.
"""

from __future__ import annotations

import errno
import logging
import os
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from components.errors import DiskFullError, PenstockError, StageError, name_error
from components.train.group import Group
from components.train.out_of_memory import is_out_of_memory
from components.train.plan.states import FP32_BYTES, MOMENT_BYTES

FULL = (errno.ENOSPC, errno.EDQUOT)
WAIT_LIMIT_S = 600.0
"""How long training waits for space on a full disk."""
POLL_INTERVAL_S = 1.0
RETRY_INTERVAL_S = 15.0
"""A write is tried again after this whatever the free space: a quota is not seen in it."""
WANTED_CHECKPOINTS = 2.2
"""Free space that a training should begin with, in checkpoints: a new one beside an old one, and the best weights."""

Decision = Literal["wait", "try", "give up"]


@dataclass(frozen=True)
class Failure:
    """What a write failed with on a worker; plain values that every worker is told."""

    rank: int
    number: int
    path: str
    reason: str

    @property
    def full(self) -> bool:
        return self.number in FULL


class WriteError(Exception):
    """A write that failed on at least one worker; raised on all of them alike."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure)
        self.failure = failure


@dataclass(frozen=True)
class Place:
    """What is written, for the words that a user reads.

    Attributes:
        name: "the checkpoint of step 300".
        folder: Below which it is written.
        size_bytes: What it is expected to take.
    """

    name: str
    folder: Path
    size_bytes: int


def together(group: Group, part: Callable[[], object]) -> None:
    """Runs a part of a save on this worker; ends when it has ended on all of them.

    Args:
        part: Calls the others as they call it, or not at all: it may fail on this worker alone.

    Raises:
        WriteError: On every worker, if it failed on one.
    """
    own: Exception | None = None
    try:
        part()
    except Exception as error:
        if is_out_of_memory(error):
            raise
        own = error
    told = None if own is None else asdict(describe(own, group.rank))
    failures = [Failure(**one) for one in group.gather_values(told) if one is not None]
    if failures:
        # One that waiting does not mend decides.
        raise WriteError(min(failures, key=lambda failure: failure.full)) from own


def describe(error: Exception, rank: int) -> Failure:
    if isinstance(error, OSError) and error.errno:
        return Failure(rank, error.errno, str(error.filename or ""), os.strerror(error.errno))
    return Failure(rank, 0, "", name_error(error))


def write_patiently(
    group: Group, place: Place, write: Callable[[], None], discard: Callable[[], object], warn: Callable[[str], None]
) -> None:
    """Calls `write` on every worker; where the disk is full, waits for space and calls it again.

    Args:
        group: The workers.
        place: What is written where.
        write: Raises WriteError on all workers or on none.
        discard: Removes what a failed attempt left; called by rank 0 alone.
        warn: Tells the user; called by rank 0 alone.

    Raises:
        DiskFullError: If there was no space for `WAIT_LIMIT_S`.
        StageError: If the write failed for another reason.
    """
    began_s: float | None = None
    while True:
        try:
            write()
        except WriteError as error:
            if group.rank == 0:
                with suppress(OSError):  # the write's own failure is the one to tell
                    discard()
            if not error.failure.full:
                raise broken(error.failure, place) from error
            if began_s is None:
                began_s = time.monotonic()
                if group.rank == 0:
                    tell(warn, f"{say_full(error.failure, place)}; training waits for space, up to "
                               f"{WAIT_LIMIT_S:g} s.")  # fmt: skip
            if wait_for_space(group, place, began_s) == "give up":
                raise given_up(error.failure, place) from error
            continue
        if began_s is not None and group.rank == 0:
            waited_s = time.monotonic() - began_s
            tell(warn, f"There was space for {place.name} after {waited_s:.0f} s: training goes on.")
        return


def wait_for_space(group: Group, place: Place, began_s: float) -> Decision:
    """Waits until rank 0 says what to do; all workers wait in short steps, so that none runs into a time limit."""
    tried_s, free = time.monotonic(), free_bytes(place.folder)
    while True:
        time.sleep(POLL_INTERVAL_S)
        decision: Decision = group.broadcast(decide(place, began_s, tried_s, free) if group.rank == 0 else None)
        if decision != "wait":
            return decision


def decide(place: Place, began_s: float, tried_s: float, free: int) -> Decision:
    """Rank 0's decision.

    Args:
        place: What is to be written.
        began_s: When waiting began, on the monotonic clock.
        tried_s: When the write was last tried.
        free: Bytes that were free then.
    """
    now_s, now_free = time.monotonic(), free_bytes(place.folder)
    if now_s - began_s >= WAIT_LIMIT_S:
        return "give up"
    freed = now_free > free and now_free >= place.size_bytes
    return "try" if freed or now_s - tried_s >= RETRY_INTERVAL_S else "wait"


def free_bytes(folder: Path) -> int:
    """Free space where a folder lies or would be made; 0 where nobody can tell."""
    for path in (folder, *folder.parents):
        if path.exists():
            return shutil.disk_usage(path).free
    return 0


def say_full(failure: Failure, place: Place) -> str:
    words = "quota is used up" if failure.number == errno.EDQUOT else "disk is full"
    return (
        f"The {words} ({failure.path or place.folder}): {place.name} takes about {megabytes(place.size_bytes)}, "
        f"{megabytes(free_bytes(place.folder))} are free under {place.folder}"
    )


def given_up(failure: Failure, place: Place) -> PenstockError:
    return DiskFullError(
        f"{say_full(failure, place)}, and that for {WAIT_LIMIT_S:g} s; free some space and run the same command again: "
        "it goes on from the newest checkpoint."
    )


def broken(failure: Failure, place: Place) -> PenstockError:
    return StageError(
        f"Worker {failure.rank} could not write {place.name} ({failure.reason}: {failure.path or place.folder}); make "
        f"{place.folder} writable again and run the same command: it goes on from the newest checkpoint."
    )


def tell(warn: Callable[[str], None], text: str) -> None:
    """Warns the user, by the log if the disk of the run's own events is full as well."""
    try:
        warn(text)
    except OSError as error:
        logging.getLogger(__name__).warning("%s (not in the run's events: %s)", text, error)


def expected_bytes(parameters: int, optimizer: str, ema: bool) -> int:
    """Roughly what a checkpoint takes: fp32 weights, optimizer state and best weights, and the average of the weights.

    ZeRO's stages 1 and 2 write the weights once more.
    """
    copies = 2 + ema
    return parameters * (FP32_BYTES * copies + MOMENT_BYTES[optimizer])


def tight_disk(folder: Path, size_bytes: int) -> str | None:
    """A warning if there is less room than a training should begin with, else None."""
    free = free_bytes(folder)
    if free >= WANTED_CHECKPOINTS * size_bytes:
        return None
    return (
        f"{folder} has {megabytes(free)} free, less than {WANTED_CHECKPOINTS:g} checkpoints of about "
        f"{megabytes(size_bytes)}; training waits when the disk is full: free some space."
    )


def megabytes(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:.1f} MB"
