"""Dynamic loss scaling for `precision: fp16`, whose small gradients would become zero.

The loss is multiplied before the backward pass and the gradient divided after it. A gradient that is then not finite
was scaled too far: the step is left out and the scale halved.

Source: Micikevicius et al. 2017, https://arxiv.org/abs/1710.03740
"""

from __future__ import annotations

from dataclasses import dataclass

GROWTH_STEPS = 2000
SMALLEST, LARGEST = 1.0, 2.0**24


@dataclass
class LossScale:
    """Kept in every checkpoint. The same on all workers: whether a gradient is finite is known to all."""

    scale: float = 2.0**16
    good_steps: int = 0
    """Taken since the scale last changed."""

    def grow(self) -> None:
        """After a step that was taken."""
        self.good_steps += 1
        if self.good_steps == GROWTH_STEPS:
            self.scale, self.good_steps = min(2 * self.scale, LARGEST), 0

    def shrink(self) -> bool:
        """After a gradient that was not finite; False if that cannot be the scale's fault, because there is none."""
        if self.scale <= SMALLEST:
            return False
        self.scale, self.good_steps = max(self.scale / 2, SMALLEST), 0
        return True
