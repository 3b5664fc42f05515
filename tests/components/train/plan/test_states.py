"""The formula against the figures of the ZeRO paper, and against what the engines here keep."""

import pytest

from components.train.plan.states import Sharding, state_bytes

GB = 1e9


@pytest.mark.parametrize(("stage", "gigabytes"), [(0, 120), (1, 31.4), (2, 16.6), (3, 1.88)])
def test_figure_1_of_the_zero_paper(stage, gigabytes):
    # 7.5B parameters, 64 workers, Adam, mixed precision: Rajbhandari et al. 2019, figure 1.
    states = state_bytes(7_500_000_000, "adam", Sharding(stage, 64), weights="bf16")
    assert states.device / GB == pytest.approx(gigabytes, rel=0.005)


@pytest.mark.parametrize(("optimizer", "total"), [("sgd", 8), ("momentum", 12), ("adagrad", 12), ("adam", 16)])
def test_bytes_a_parameter_of_one_worker_under_autocast(optimizer, total):
    assert state_bytes(1000, optimizer, Sharding(0, 1)).device == total * 1000


def test_every_stage_but_0_copies_its_share_of_fp32_weights():
    assert state_bytes(1000, "adamw", Sharding(0, 4)).optimizer == 8 * 1000
    assert {state_bytes(1000, "adamw", Sharding(stage, 4)).optimizer for stage in (1, 2, 3)} == {(8 + 4) * 250}


def test_stage_3_leaves_small_tensors_whole():
    sharded, whole = (state_bytes(1000, "adamw", Sharding(3, 4), whole=size).weights for size in (0, 100))
    assert whole - sharded == 4 * 100


def test_offload_moves_bytes_and_loses_none():
    kept = state_bytes(1000, "adamw", Sharding(2, 4))
    moved = state_bytes(1000, "adamw", Sharding(2, 4, offload_optimizer="cpu"))
    assert (moved.optimizer, moved.gradients, moved.weights) == (0, 0, kept.weights)
    assert moved.host == kept.optimizer + kept.gradients
    disk = state_bytes(1000, "adamw", Sharding(3, 4, "nvme", "nvme"))
    assert (disk.device, disk.nvme) == (0, (8 + 4) * 250 + 2 * 4 * 250)  # the gradient, too
