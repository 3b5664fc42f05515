import math
from types import SimpleNamespace

import pytest
import torch

from components.errors import StageError
from components.train.finite import check_weights
from components.train.group import ALONE
from components.train.plan.measure import MemoryWatch


def make_session(weights):
    module = torch.nn.Module()
    module.weight = torch.nn.Parameter(weights)
    module.register_buffer("empty", torch.empty(0))
    module.register_buffer("count", torch.tensor(3))
    values = SimpleNamespace(learning_rate=0.1)
    return SimpleNamespace(
        engine=SimpleNamespace(module=module),
        group=ALONE,
        progress=SimpleNamespace(step=1),
        job=SimpleNamespace(train=values),
    )


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_one_bad_number_among_many_is_found(value):
    weights = torch.ones(100_000)
    weights[70_000] = value
    with pytest.raises(StageError, match="not finite after step 1"):
        check_weights(make_session(weights))


def test_the_largest_numbers_are_finite():
    largest = torch.finfo(torch.float32).max
    check_weights(make_session(torch.tensor([largest, largest, -largest])))


def test_looking_makes_no_copy():
    session = make_session(torch.ones(16 << 20))
    check_weights(session)
    watch = MemoryWatch.start()
    check_weights(session)
    assert watch.peak_bytes() < 16 << 20  # of 64 MiB
