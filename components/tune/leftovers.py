"""Ends the processes that a trial left behind: its own process is used again, and theirs would take its cores."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import psutil

ROUNDS = 100
"""A process that starts others while it is ended is looked for again; more rounds than any real one needs."""


@contextmanager
def leftovers_ended() -> Iterator[None]:
    """Kills the children that this process got within the block, and theirs."""
    import psutil

    me = psutil.Process()
    before = {child.pid for child in me.children()}
    try:
        yield
    finally:
        for _ in range(ROUNDS):
            # Only what hangs on a new child: a Ray that this process started before goes on starting workers.
            new = [child for child in me.children() if child.pid not in before]
            left = [*new, *(below for child in new for below in descendants(child))]
            if not left:
                break
            for child in left:
                with suppress(psutil.NoSuchProcess):
                    child.kill()
            psutil.wait_procs(left, timeout=5)


def descendants(process: psutil.Process) -> list[psutil.Process]:
    """All processes below one; none if it has ended."""
    import psutil

    try:
        return process.children(recursive=True)
    except psutil.NoSuchProcess:
        return []
