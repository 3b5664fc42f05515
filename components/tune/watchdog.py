"""Ends the process of a trial that hangs: nothing else can, once it is stuck in native code or waits for ever."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

HUNG_NAME = "hung.txt"
EXIT_CODE = 75
POLL_S = 0.5


class Watchdog:
    """Ends this process when `timeout_s` passed without a sign of life.

    Args:
        timeout_s: None never does.
        folder: Of the trial; the reason is left there for whoever finds the process dead.
    """

    def __init__(self, timeout_s: float | None, folder: Path) -> None:
        self.timeout_s, self.folder = timeout_s, folder
        self.last_s = time.monotonic()
        self._done = threading.Event()

    def __enter__(self) -> Watchdog:
        if self.timeout_s is not None:
            threading.Thread(target=self._watch, name="watchdog", daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._done.set()

    def alive(self) -> None:
        """A sign of life."""
        self.last_s = time.monotonic()

    def _watch(self) -> None:
        assert self.timeout_s is not None
        while not self._done.wait(POLL_S):
            if time.monotonic() - self.last_s > self.timeout_s:
                self.folder.mkdir(parents=True, exist_ok=True)
                (self.folder / HUNG_NAME).write_text(f"it did not report for {self.timeout_s:g} s")
                os._exit(EXIT_CODE)


def take_hung_reason(folder: Path) -> str | None:
    """What a watchdog left in a trial's folder, once; None if it was none."""
    note = folder / HUNG_NAME
    if not note.exists():
        return None
    reason = note.read_text()
    note.unlink()
    return reason
