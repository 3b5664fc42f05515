"""Steps whose loss is far above the losses just before.

The scale is that of the logarithms, by median and median absolute deviation: for the even losses of a language model
this is mean and standard deviation, and the uneven ones of small batches that are nearly learnt are no alarm. A loss
that is not positive has no such scale and is not watched.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from statistics import median

WINDOW_STEPS = 100
LEAST_STEPS = 30
DEVIATIONS = 6.0
SMALLEST_DEVIATION = 0.01
"""Of the logarithms: a loss that stands still would make an alarm of anything."""
NORMAL_SCALE = 1.4826
"""Turns a median absolute deviation into a standard deviation."""


@dataclass
class LossWatch:
    """Looks at one loss after the other; after a resume it begins anew."""

    recent: deque[float] = field(default_factory=lambda: deque(maxlen=WINDOW_STEPS))

    def usual(self) -> float:
        """The middle one of the losses just before."""
        return math.exp(median(self.recent))

    def is_spike(self, loss: float) -> bool:
        """Whether this loss is one; it then counts among those before the next."""
        if not loss > 0 or not math.isfinite(loss):
            return False
        value = math.log(loss)
        found = len(self.recent) >= LEAST_STEPS and value > self.limit()
        self.recent.append(value)
        return found

    def limit(self) -> float:
        centre = median(self.recent)
        spread = NORMAL_SCALE * median(abs(value - centre) for value in self.recent)
        return centre + DEVIATIONS * max(spread, SMALLEST_DEVIATION)
