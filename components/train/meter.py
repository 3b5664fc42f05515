"""How fast training goes and what it waits for, told about once a second."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median

INTERVAL_S = 1.0


@dataclass
class StartUp:
    """Where the seconds before the first step's end go.

    Attributes:
        begun: When this worker began, in seconds since 1970.
        laps_s: Seconds of each part, in their order.
    """

    begun: float = field(default_factory=time.time)
    laps_s: dict[str, float] = field(default_factory=dict)
    _since: float = field(default_factory=time.monotonic)

    def lap(self, name: str) -> None:
        """What was done since the last call is called `name`."""
        now = time.monotonic()
        self.laps_s[name] = round(now - self._since, 3)
        self._since = now


@dataclass
class Meter:
    """Counts steps against the clock.

    Attributes:
        total_steps: Steps of the whole training.
        batch_size: Samples a step, over all workers.
        seq_len: Tokens a sample of a language model, else None.
        done_before: Steps an earlier process took.
        peak_flops: FLOPs a second that this worker's device can do; None where no utilisation is told.
        start_up: Ends with the first step.
    """

    total_steps: int
    batch_size: int
    done_before: int
    seq_len: int | None = None
    peak_flops: float | None = None
    start_up: StartUp = field(default_factory=StartUp)
    start_s: float = field(default_factory=lambda: time.monotonic())
    told_s: float = 0.0
    training_s: float = 0.0
    """In steps after the first one, which compiles and allocates; without validations and checkpoints."""
    waited_s: float = 0.0
    """Of those, for batches."""
    flops: float = 0.0
    """That the model needed in those, of this worker."""
    steps: int = 0
    own_s: deque[float] = field(default_factory=lambda: deque(maxlen=1000))
    """Of micro batches since the last validation: reading the batch and the forward pass, which wait for nobody."""
    _since: float | None = None
    _warm: bool = False

    def due(self) -> bool:
        """Whether an interval has passed since this last said yes."""
        now = time.monotonic()
        if now - self.told_s < INTERVAL_S:
            return False
        self.told_s = now
        return True

    @property
    def seconds(self) -> float:
        """Since this process began to train."""
        return time.monotonic() - self.start_s

    @contextmanager
    def running(self) -> Iterator[None]:
        """The clock of the steps runs inside."""
        self._since = time.monotonic()
        try:
            yield
        finally:
            self.pause()

    def pause(self) -> None:
        """Stops the clock of the steps; `running` or `go_on` starts it again."""
        if self._since is not None:
            self.training_s += time.monotonic() - self._since
            self._since = None

    def go_on(self) -> None:
        self._since = time.monotonic()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Inside, a batch is waited for."""
        start = time.monotonic()
        yield
        self.waited_s += time.monotonic() - start

    def count_step(self) -> None:
        """Called after each step; what the first one took is forgotten."""
        self.steps += 1
        if not self._warm:
            self._warm = True
            self.start_up.lap("first_step")
            self.steps, self.training_s, self.waited_s, self.flops = 0, 0.0, 0.0, 0.0
            self.go_on()

    def take_own_s(self) -> float:
        """The middle one of `own_s`, which begins anew; 0 where none was measured."""
        middle = median(self.own_s) if self.own_s else 0.0
        self.own_s.clear()
        return middle

    def pace(self, step: int) -> dict[str, float]:
        """What is told of the speed of this process after `step` steps of the training.

        Returns:
            samples_per_s (tokens_per_s of a language model), over all workers; mfu, the share of the device's peak that
            the model's own FLOPs make up, where it is known; data_wait, the share of the time that batches were waited
            for; eta_s to the last step.
        """
        elapsed_s = self.training_s + (time.monotonic() - self._since if self._since is not None else 0.0)
        overall = (step - self.done_before) / max(self.seconds, 1e-9)
        steps_per_s = self.steps / max(elapsed_s, 1e-9) if self.steps else overall
        samples_per_s = steps_per_s * self.batch_size
        told = {"samples_per_s": samples_per_s}
        if self.seq_len is not None:
            told = {"tokens_per_s": samples_per_s * self.seq_len}
        if self.steps:
            if self.peak_flops:
                told["mfu"] = self.flops / elapsed_s / self.peak_flops
            told["data_wait"] = min(1.0, self.waited_s / max(elapsed_s, 1e-9))
        return {**told, "eta_s": (self.total_steps - step) / overall if overall else 0.0}
