from dataclasses import replace

import pytest

from components.train.plan.memory import REDUCE_BUCKET_ELEMENTS, Setting, buffer_bytes
from components.train.plan.network import NetworkSizes
from components.train.plan.search import Demand, Machine, Planner
from components.train.plan.states import Sharding
from tests.components.train.plan.workloads import make_workload

SIZES = NetworkSizes((), parameters=3_000_000_000, looked_up=0, largest_block=10**8, small=0)
ALONE = Setting("adamw", "bf16", Sharding(0, 1), micro_batch_size=8)


@pytest.mark.parametrize(
    ("stage", "workers", "device", "size"),
    [
        (0, 1, "cuda", 0),  # plain torch reduces nothing
        (2, 4, "cuda", 4 * REDUCE_BUCKET_ELEMENTS),
        (3, 4, "cuda", 2 * (REDUCE_BUCKET_ELEMENTS + 10**9)),  # sent and gathered in bf16
    ],
)
def test_buffers(stage, workers, device, size):
    setting = replace(ALONE, sharding=Sharding(stage, workers), device=device)
    assert buffer_bytes(SIZES, setting) == size


def predict(**changes):
    planner = Planner(Demand(make_workload("llama"), "adamw", "fp32", 8, 1), Machine("cpu", 0), exact=True)
    return planner.predict(replace(ALONE, precision="fp32", device="cpu", **changes))


def test_accumulated_gradients_lie_beside_the_activations():
    once, twice = predict(), predict(accumulation=2)
    assert once.states == twice.states
    assert twice.activations > once.activations


def test_a_large_validation_batch_may_be_the_peak():
    assert predict(validation_batch=1000).activations > predict(validation_batch=1).activations


def test_the_parts_add_up():
    found = predict(data_bytes=1000)
    assert found.training_bytes == found.states.device + found.activations + found.buffers + found.overhead
    assert found.device_bytes == found.training_bytes + found.process
    assert found.overhead - predict().overhead == 1000
