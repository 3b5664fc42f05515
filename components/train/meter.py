"""How fast training goes, told about once a second."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

INTERVAL_S = 1.0


@dataclass
class Meter:
    """Counts steps against the clock.

    Attributes:
        total_steps: Steps of the whole training.
        batch_size: Samples a step, over all workers.
        seq_len: Tokens a sample of a language model, else None.
        done_before: Steps an earlier process took.
    """

    total_steps: int
    batch_size: int
    done_before: int
    seq_len: int | None = None
    start_s: float = field(default_factory=time.monotonic)
    told_s: float = 0.0

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

    def pace(self, step: int) -> dict[str, float]:
        """samples_per_s of this process (tokens_per_s of a language model), and eta_s to the last step."""
        steps_per_s = (step - self.done_before) / max(self.seconds, 1e-9)
        eta_s = (self.total_steps - step) / steps_per_s if steps_per_s else 0.0
        samples_per_s = steps_per_s * self.batch_size
        if self.seq_len is not None:
            return {"tokens_per_s": samples_per_s * self.seq_len, "eta_s": eta_s}
        return {"samples_per_s": samples_per_s, "eta_s": eta_s}
