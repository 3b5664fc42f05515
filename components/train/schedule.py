"""The learning rate as a function of the step alone, so that a resumed run needs no state of a scheduler."""

from __future__ import annotations

import math

from components.train.config import ScheduleConfig


def rate_factor(config: ScheduleConfig, step: int, total_steps: int, steps_per_epoch: int) -> float:
    """The learning rate of a step as a share of the peak.

    Args:
        step: Optimizer steps taken before, counted from 0 over the whole training.
        total_steps: Steps of the whole training.
        steps_per_epoch: For `step`, whose drops are counted in epochs.
    """
    warmup_steps = round(config.warmup * total_steps)
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    if config.name == "step":
        return config.gamma ** (step // steps_per_epoch // config.step_epochs)
    if config.name == "constant":
        return 1.0
    done = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    shape = 0.5 * (1 + math.cos(math.pi * done)) if config.name == "cosine" else 1 - done
    return config.final + (1 - config.final) * shape
