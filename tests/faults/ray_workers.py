"""Signals to the workers of a training group on the tests' local Ray."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from components.train.failures import count_restarts, newest_step
from pipelines.processes import session_members
from pipelines.ray_cluster import read_record


@dataclass
class Strike:
    """A signal that was sent to a worker.

    Attributes:
        pid: Who got it.
        sent_s: When, by the monotonic clock.
        restarted_s: When the restart was recorded; None until then.
    """

    pid: int
    sent_s: float
    restarted_s: float | None = None

    def pause_s(self) -> float:
        """From the signal to the decision to start again."""
        assert self.restarted_s is not None
        return self.restarted_s - self.sent_s


def strike_workers(work_folder: Path, signals: Sequence[int]) -> list[Strike]:
    """Sends each signal to a worker, as soon as the group has written a checkpoint since the last one.

    Returns:
        What was sent; a thread fills it.
    """
    strikes: list[Strike] = []
    threading.Thread(target=_strike, args=(work_folder, signals, strikes), daemon=True).start()
    return strikes


def _strike(work_folder: Path, signals: Sequence[int], strikes: list[Strike]) -> None:
    home = Path(os.environ["RAY_AUTH_TOKEN_PATH"]).parents[1]
    record = read_record(home)
    assert record is not None
    for count, number in enumerate(signals):
        seen = newest_step(work_folder)
        wait_until(lambda seen=seen: newest_step(work_folder) > seen)
        gone = {strike.pid for strike in strikes}
        workers = [pid for pid in sorted(session_members(record.leader)) if is_worker(pid) and pid not in gone]
        pid = workers[count % len(workers)]
        os.kill(pid, number)
        strikes.append(Strike(pid, time.monotonic()))
        wait_until(lambda count=count: count_restarts(work_folder) == count + 1)
        strikes[-1].restarted_s = time.monotonic()


def wait_until(holds: Callable[[], bool]) -> None:
    while not holds():
        time.sleep(0.02)


def is_worker(pid: int) -> bool:
    with suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"ray::RayTrainWorker")
    return False
