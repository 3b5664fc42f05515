"""Checkpoints, written while training goes on.

    save(session)     copies the state and returns; a thread of each worker writes its part meanwhile
    settle(session)   waits until that checkpoint is committed, or says on every worker why it is not

The threads send each other nothing, as their messages would mix with those of the training. Each leaves a mark when its
part is written, and rank 0's thread commits when there are the marks of all.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from threading import Event, Thread
from typing import TYPE_CHECKING, Any

from components.train.checkpoint import CheckpointFolder
from components.train.disk import Place, together, write_patiently
from components.train.finite import check_weights
from components.train.group import Group
from components.train.job import warn
from components.train.randomness import current_states

if TYPE_CHECKING:
    from components.train.session import Session

BEST_NAME = "best.safetensors"
AVERAGE_NAME = "average.safetensors"
POLL_INTERVAL_S = 0.02
CLOSE_TIMEOUT_S = 10.0
"""How long a worker that fails waits for the others' parts of a checkpoint that is being written."""

Write = Callable[[], object]


class Saving:
    """One worker's part in writing one checkpoint, in a thread of its own.

    Args:
        checkpoints: Where it belongs.
        step: Optimizer steps that were taken.
        group: The workers.
        parts: What this worker writes; each may be called again if it failed.
        state: What the loop keeps; rank 0's counts.
    """

    def __init__(
        self, checkpoints: CheckpointFolder, step: int, group: Group, parts: list[Write], state: Mapping[str, Any]
    ) -> None:
        self.checkpoints, self.step, self.group, self.parts, self.state = checkpoints, step, group, parts, state
        self.written, self.abandoned = Event(), Event()
        self.error: BaseException | None = None
        self.thread: Thread | None = None

    def start(self) -> None:
        """Begins to write; called by every rank, after rank 0 has made the folder."""
        self.written, self.abandoned, self.error = Event(), Event(), None
        self.thread = Thread(target=self._run, name=f"checkpoint-{self.step}", daemon=True)
        self.thread.start()

    def _run(self) -> None:
        try:
            for part in self.parts:
                part()
            self.checkpoints.mark(self.step, self.group.rank)
            self.written.set()
            if self.group.rank == 0 and self._wait_for_marks():
                self.checkpoints.commit(self.step, self.state)
        except BaseException as error:  # noqa: BLE001 - a thread's error is told by `settle`, on every worker
            self.error = error
        finally:
            self.written.set()

    def _wait_for_marks(self) -> bool:
        """Whether all workers wrote their part; False when that is no longer waited for."""
        while not self.checkpoints.marked(self.step, self.group.world_size):
            if self.abandoned.wait(POLL_INTERVAL_S):
                return False
        return True

    def join_parts(self) -> None:
        """Returns when this worker's part is written, or raises why it is not."""
        self.written.wait()
        self._raise_error()

    def join(self) -> None:
        """Returns when all is done, or raises why it is not."""
        assert self.thread is not None
        self.thread.join()
        self._raise_error()

    def _raise_error(self) -> None:
        if self.error is not None:
            raise self.error

    def close(self) -> None:
        """For a worker that fails: what can still be committed is, then the thread ends."""
        if self.thread is None:
            return
        self.thread.join(CLOSE_TIMEOUT_S)
        self.abandon()

    def abandon(self) -> None:
        """Ends the thread, whatever the others have written."""
        assert self.thread is not None
        self.abandoned.set()
        self.thread.join()
        self.thread = None


def save(session: Session, copy: bool = False) -> None:
    """Begins a checkpoint of the step that was just taken; every rank calls it, and `settle` later.

    Args:
        copy: Whether training goes on before `settle`, so that the state must be copied.

    Raises:
        StageError: If the weights are not finite.
    """
    settle(session)
    check_weights(session)
    step, group, checkpoints = session.progress.step, session.group, session.checkpoints
    folder = checkpoints.partial_path(step)
    if session.engine.loss_scale is not None:
        session.progress.loss_scale = asdict(session.engine.loss_scale)
    states = current_states(float(session.loss_sum))
    parts: list[Write] = [
        session.engine.hold_state(folder, copy),
        lambda: (folder / states_name(group.rank)).write_text(states),
    ]
    if group.rank == 0:
        if session.average is not None:
            parts.append(session.average.hold_state(folder / AVERAGE_NAME, copy))
        if session.progress.best_epoch:
            parts.append(partial(shutil.copyfile, session.best_weights(), folder / BEST_NAME))
    saving = Saving(checkpoints, step, group, parts, asdict(session.progress))
    patiently(session, saving, partial(begin, saving))
    session.saving, session.saved_step = saving, step


def settle(session: Session) -> None:
    """Returns when the checkpoint that is being written, if there is one, is committed; every rank calls it.

    Waits while the disk is full.

    Raises:
        PenstockError: On every rank, if a worker could not write its part, or rank 0 not commit.
    """
    saving, session.saving = session.saving, None
    if saving is not None:
        patiently(session, saving, partial(complete, saving))


def patiently(session: Session, saving: Saving, write: Callable[[], None]) -> None:
    """`write_patiently` for a checkpoint."""
    place = Place(f"the checkpoint of step {saving.step}", saving.checkpoints.folder, session.checkpoint_bytes())
    discard = partial(saving.checkpoints.discard, saving.step)
    write_patiently(session.group, place, write, discard, partial(warn, session.worker))


def begin(saving: Saving) -> None:
    """Makes the folder and begins to write into it."""
    together(saving.group, lambda: saving.checkpoints.begin(saving.step) if saving.group.rank == 0 else None)
    saving.start()


def complete(saving: Saving) -> None:
    """Waits for what was begun; begins it again if that failed before."""
    if saving.thread is None:
        begin(saving)
    try:
        together(saving.group, saving.join_parts)
        together(saving.group, saving.join)
    except BaseException:
        saving.abandon()
        raise


def states_name(rank: int) -> str:
    return f"random.rank{rank}.json"
