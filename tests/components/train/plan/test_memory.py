from dataclasses import replace

import pytest
import torch

from components.train.muon import Muon
from components.train.plan.measure import MemoryWatch
from components.train.plan.memory import (
    CPU_BUCKET_ELEMENTS,
    DATA_LIBRARY_BYTES,
    DEEPSPEED_BYTES,
    OPTIMIZER_LIBRARY_BYTES,
    PACKED_MOST_BYTES,
    REDUCE_BUCKET_ELEMENTS,
    TRANSFORMERS_BYTES,
    Setting,
    buffer_bytes,
    runtime_bytes,
    stepping_peak,
)
from components.train.plan.network import NetworkSizes, count_parameters
from components.train.plan.search import Demand, Machine, Planner
from components.train.plan.states import Sharding, state_bytes
from tests.components.train.plan.workloads import make_workload

SIZES = NetworkSizes((), parameters=3_000_000_000, looked_up=0, largest_block=10**8, small=0)
ALONE = Setting("adamw", "bf16", Sharding(0, 1), micro_batch_size=8)


@pytest.mark.parametrize(
    ("stage", "workers", "device", "size"),
    [
        (0, 1, "cuda", 0),  # plain torch reduces nothing
        (2, 4, "cuda", 4 * REDUCE_BUCKET_ELEMENTS),
        (2, 4, "cpu", 4 * CPU_BUCKET_ELEMENTS),
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


def test_optimizer_state_in_the_heap_counts_at_most_once():
    adam, sgd = predict(optimizer="adamw"), predict(optimizer="sgd")
    # Less where it fits into what the first step has left.
    assert 0 <= adam.training_bytes - sgd.training_bytes < 1.3 * adam.states.optimizer


def test_a_copy_of_the_state_holds_the_average_too():
    alone, both = predict(averaged=True), predict(averaged=True, saved_beside=True)
    states, average = alone.states, 4 * count_parameters(make_workload("llama")).trained
    assert both.overhead - alone.overhead == states.weights + states.optimizer + average


def test_reading_rows_and_transformers_load_libraries():
    rows, text = predict(reads_rows=True), predict(reads_rows=False)
    assert rows.overhead - text.overhead == DATA_LIBRARY_BYTES
    sizes, setting = replace(SIZES, largest_tensor=1 << 20), replace(ALONE, device="cpu")
    more = runtime_bytes(replace(sizes, from_transformers=True), setting) - runtime_bytes(sizes, setting)
    assert more == TRANSFORMERS_BYTES - OPTIMIZER_LIBRARY_BYTES


def test_packed_copies_of_the_largest_weight_are_bounded():
    small, wide = (
        runtime_bytes(replace(SIZES, largest_tensor=size), replace(ALONE, device="cpu")) for size in (0, 10**9)
    )
    assert wide - small == PACKED_MOST_BYTES


def test_muon_needs_copies_in_its_step():
    sizes = count_parameters(make_workload("mlp", hidden_sizes=(512, 256)))
    assert sizes.hidden == 64 * 512 + 512 * 256  # not the output layer
    assert sizes.hidden_squares == 64**2 + 256**2
    states, setting = state_bytes(sizes.parameters, "muon", Sharding(0, 1)), replace(ALONE, optimizer="muon")
    more = stepping_peak(states, sizes, setting) - stepping_peak(states, sizes, replace(setting, optimizer="adamw"))
    assert more == 4 * (2 * sizes.hidden + 5 * sizes.hidden_squares)


def test_muons_step_holds_what_is_said():
    weights = [torch.nn.Parameter(torch.randn(1024, 1024)) for _ in range(4)]
    muon = Muon(weights, lr=1e-3, momentum=0.9, weight_decay=0.0, dtype=torch.float32)
    for _ in range(2):  # the first step makes the momentum
        for weight in weights:
            weight.grad = torch.ones_like(weight)
        watch = MemoryWatch.start()
        muon.step()
    # 3 copies and 5 squares of 16 MiB, less what the heap had left.
    assert watch.peak_bytes() < 1.1 * 8 * (16 << 20)


def test_deepspeed_on_a_cpu_holds_the_weights_once_more():
    alone, sharded = predict(), predict(sharding=Sharding(1, 1, "cpu"))
    more = sharded.overhead - alone.overhead - sharded.states.host
    assert more == DEEPSPEED_BYTES + sharded.states.weights


def test_the_parts_add_up():
    found = predict(data_bytes=1000)
    assert found.training_bytes == found.states.device + found.activations + found.buffers + found.overhead
    assert found.device_bytes == found.training_bytes + found.process
    assert found.overhead - predict().overhead == 1000
