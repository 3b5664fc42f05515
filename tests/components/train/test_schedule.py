import math

import pytest

from components.train.config import ScheduleConfig
from components.train.schedule import rate_factor


def factors(total=100, per_epoch=10, **values):
    config = ScheduleConfig.model_validate(values)
    return [rate_factor(config, step, total, per_epoch) for step in range(total)]


def test_warmup_rises_linearly_to_the_peak():
    assert factors(name="constant", warmup=0.1)[:11] == pytest.approx([(step + 1) / 10 for step in range(10)] + [1.0])


def test_cosine_is_the_closed_form():
    got = factors(name="cosine", warmup=0, final=0.2)
    assert got == pytest.approx([0.2 + 0.8 * 0.5 * (1 + math.cos(math.pi * step / 100)) for step in range(100)])


def test_linear_falls_to_final():
    assert factors(name="linear", warmup=0, final=0.5)[50] == pytest.approx(0.75)


def test_step_drops_every_so_many_epochs():
    got = factors(name="step", warmup=0, step_epochs=3, gamma=0.1)
    assert (got[29], got[30], got[60]) == pytest.approx((1.0, 0.1, 0.01))
