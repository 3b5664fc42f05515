from __future__ import annotations

import math
import random

from components.train.spikes import LEAST_STEPS, LossWatch


def falling(steps: int, seed: int = 0) -> list[float]:
    """Losses of a language model that learns: from 6 to 3, with noise of 2 %."""
    chance = random.Random(seed)
    return [(3 + 3 * math.exp(-step / 100)) * chance.gauss(1, 0.02) for step in range(steps)]


def test_an_ordinary_training_has_no_spike():
    watch = LossWatch()
    assert [step for step, loss in enumerate(falling(2000)) if watch.is_spike(loss)] == []


def test_a_leap_is_found_and_does_not_hide_the_next_one():
    watch, losses = LossWatch(), falling(500)
    losses[300], losses[310] = 5.0, 4.6
    assert [step for step, loss in enumerate(losses) if watch.is_spike(loss)] == [300, 310]


def test_uneven_losses_of_a_task_that_is_nearly_learnt_are_no_spikes():
    watch, chance = LossWatch(), random.Random(0)
    losses = [0.01 * math.exp(chance.gauss(0, 1)) for _ in range(2000)]
    assert sum(watch.is_spike(loss) for loss in losses) == 0
    assert watch.is_spike(20.0)


def test_nothing_is_said_before_there_is_something_to_compare_with():
    watch = LossWatch()
    assert not any(watch.is_spike(1.0) for _ in range(LEAST_STEPS - 1))
    assert not watch.is_spike(100.0)
    assert watch.is_spike(200.0)


def test_a_loss_that_is_not_positive_is_not_watched():
    watch = LossWatch()
    assert not any(watch.is_spike(loss) for loss in [-1.0, 0.0, float("nan"), float("inf")] * 50)
    assert not watch.recent
