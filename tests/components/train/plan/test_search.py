from dataclasses import replace

import pytest

from components.errors import SpecError
from components.train.plan.search import (
    GIB,
    Demand,
    Machine,
    Planner,
    busy_micro_batch,
    divisors,
    name_way,
    spec_changes,
)
from tests.components.train.plan.workloads import llama_70b, make_workload


def test_a_70b_model_on_512_gpus_is_planned_without_its_weights():
    planner = Planner(Demand(llama_70b(), "adamw", "bf16", 1024, 512), Machine("cuda", 80 * GIB))
    options = planner.options()
    chosen = planner.choose(options)
    assert chosen is not None
    assert name_way(chosen.setting) == "ZeRO-3, checkpointing"
    # 20 bytes a parameter over 512 workers, and the small tensors of stage 3 whole.
    assert chosen.memory.states.device == pytest.approx(20 * 70.55e9 / 512, rel=0.01)
    assert not options[0].fits
    assert "too much for 80.0 GiB" in options[0].reason


def planner_for(memory_bytes, workers=4, batch=64, host_bytes=None):
    demand = Demand(make_workload("llama"), "adamw", "fp32", batch, workers)
    return Planner(demand, Machine("cuda", memory_bytes, host_bytes))


def test_the_quickest_way_that_fits_is_chosen():
    planner = planner_for(40 * GIB)
    options = planner.options()
    assert planner.choose(options) is options[0]
    assert spec_changes(options[0].setting) == {"train.zero.stage": 0, "train.gradient_accumulation_steps": 1}


def test_too_little_memory_is_told_by_how_much():
    planner = planner_for(GIB // 2)
    options = planner.options()
    assert planner.choose(options) is None
    assert all("too much for 512 MiB" in option.reason for option in options)
    assert {option.setting.micro_batch_size for option in options} == {1}


def test_a_host_too_small_for_the_offload_is_told():
    planner = planner_for(40 * GIB, host_bytes=1)
    offloaded = [option for option in planner.options() if "optimizer on cpu" in name_way(option.setting)]
    assert all("the host lacks" in option.reason for option in offloaded)


def test_a_disk_is_taken_where_nothing_else_fits():
    planner = planner_for(40 * GIB)
    planner.machine = replace(planner.machine, nvme_bytes=GIB)
    options = planner.options()
    on_disk = ["nvme" in name_way(option.setting) for option in options]
    assert on_disk == [False] * (len(options) - 2) + [True, True]
    assert all(option.memory.states.nvme and option.memory.states.host for option in options[-2:])
    small = replace(options[0], setting=replace(options[0].setting, micro_batch_size=1))
    assert planner.choose([small, *options[-2:]]) is small
    only_disk = planner.choose([replace(each, fits=disk) for each, disk in zip(options, on_disk, strict=True)])
    assert only_disk is not None
    assert name_way(only_disk.setting) == "ZeRO-3, checkpointing, optimizer on nvme"
    planner.machine = replace(planner.machine, nvme_bytes=1)
    assert all("the disk lacks" in planner.judge(option.setting).reason for option in options[-2:])


def test_a_batch_that_does_not_divide_is_refused_with_one_that_does():
    with pytest.raises(SpecError, match="64 does not divide by 6 workers; make it a multiple, such as 66"):
        planner_for(GIB, workers=6).options()


def test_alone_there_is_nobody_to_share_with():
    ways = [str(way) for way in planner_for(GIB, workers=1).ways()]
    assert ways[:3] == ["ZeRO-0", "ZeRO-0, checkpointing", "ZeRO-2, checkpointing, optimizer on cpu"]


def test_a_micro_batch_is_busy_with_enough_tokens():
    assert busy_micro_batch(64, tokens=1024) == 4
    assert busy_micro_batch(64, tokens=1) == 64
    assert divisors(12) == [1, 2, 3, 4, 6, 12]
