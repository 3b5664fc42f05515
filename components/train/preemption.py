"""Asked to stop, a training finishes its step, writes a checkpoint and ends; the same command goes on from there.

SIGTERM asks one worker: clusters send it some 30 s before they take a machine away. A file in the work folder asks the
whole group: its launcher writes it when `penstock run` is interrupted. Either way all workers stop after the same step.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from components.errors import PreemptedError

if TYPE_CHECKING:
    from components.train.session import Session

STOP_NAME = "stop-asked"
LOOK_INTERVAL_S = 1.0
"""How often the workers tell each other whether one was asked; of the 30 s that a cluster gives."""
LOOK_TICKS = 1000
"""Steps between two looks at most, however short they are."""

_asked = threading.Event()


def note_sigterm() -> None:
    """From now on SIGTERM asks the training of this process to stop; called in the main thread."""
    signal.signal(signal.SIGTERM, lambda *_: _asked.set())


@contextmanager
def sigterm_asks(work_folder: Path) -> Iterator[None]:
    """Inside, SIGTERM asks the training with this work folder to stop, here and in its workers.

    Asks nothing where a signal cannot be handled: outside of the main thread.
    """
    stop_file = work_folder / STOP_NAME
    stop_file.unlink(missing_ok=True)
    _asked.clear()

    def ask(*_: object) -> None:
        _asked.set()
        stop_file.touch()

    try:
        previous = signal.signal(signal.SIGTERM, ask)
    except ValueError:
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
        stop_file.unlink(missing_ok=True)


def group_is_asked(work_folder: Path) -> bool:
    """Whether the launcher wants the whole training to end, and not only this group."""
    return (work_folder / STOP_NAME).exists()


@dataclass
class Lookout:
    """When the workers of a group next tell each other whether one was asked to stop.

    A tick is what all of them do equally often: a step, or a batch of the validation.
    """

    ticks: int = 0
    next_tick: int = 1
    looked_tick: int = 0
    looked_s: float = field(default_factory=time.monotonic)

    def due(self) -> bool:
        """Counts a tick; the same answer on every worker."""
        self.ticks += 1
        return self.ticks >= self.next_tick

    def tick_s(self) -> float:
        """What a tick took since the last look."""
        return (time.monotonic() - self.looked_s) / (self.ticks - self.looked_tick)

    def plan(self, tick_s: float) -> None:
        """Sets the next look about an interval away.

        Args:
            tick_s: Of the slowest worker, so that all plan alike.
        """
        self.looked_tick, self.looked_s = self.ticks, time.monotonic()
        self.next_tick = self.ticks + max(1, min(LOOK_TICKS, int(LOOK_INTERVAL_S / max(tick_s, 1e-6))))


def asked_to_stop(session: Session) -> bool:
    """Whether a worker was asked; every rank calls it equally often and hears the same."""
    group = session.group
    if group.world_size == 1:
        return _asked.is_set()
    if not session.lookout.due():
        return False
    import torch

    asked = _asked.is_set() or (group.rank == 0 and group_is_asked(session.job.work_folder))
    own = torch.tensor([float(asked), session.lookout.tick_s()], dtype=torch.float64, device=group.device)
    told = group.gather(own)  # (workers, 2)
    session.lookout.plan(float(told[:, 1].max()))
    return bool(told[:, 0].any())


class AskedToStop(Exception):
    """Leaves a validation; the rounds then end with a checkpoint."""


def leave_if_asked(session: Session) -> None:
    """Between two batches of a validation.

    Raises:
        AskedToStop: On every rank, if a worker was asked to stop.
    """
    if asked_to_stop(session):
        raise AskedToStop


def preempted(step: int) -> PreemptedError:
    return PreemptedError(
        f"Training was asked to stop and did after step {step}, which its checkpoint holds; the same command goes on "
        "from there."
    )
