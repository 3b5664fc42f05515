"""Which engine trains what."""

from __future__ import annotations

import pytest

from components.train.config import TrainConfig
from components.train.engine import choose_engine
from components.train.loop import train
from components.train.plan.states import Sharding
from tests.components.train.jobs import FakeWorker, make_job


@pytest.mark.parametrize(
    ("values", "world_size", "expected"),
    [
        ({}, 1, "torch"),
        ({"zero": {"stage": 1}}, 1, "torch"),
        ({"zero": {"stage": 2}}, 1, "torch"),
        ({"zero": {"stage": 2, "offload_optimizer": "cpu"}}, 1, "deepspeed"),
        ({"zero": {"stage": 3}}, 1, "deepspeed"),
        ({"workers": 2}, 2, "deepspeed"),
        ({"workers": 2, "zero": {"stage": 1}}, 2, "deepspeed"),
        ({"workers": 2, "min_workers": 1}, 1, "torch"),  # its state is whole: any number of workers reads it
        ({"workers": 2, "min_workers": 1, "zero": {"stage": 1}}, 1, "deepspeed"),
    ],
)
def test_torch_trains_what_nobody_shares(values, world_size, expected):
    assert choose_engine(TrainConfig.model_validate(values), world_size) == expected


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_the_planner_counts_what_the_engine_holds(stage):
    config = TrainConfig.model_validate({"zero": {"stage": stage}})
    found = Sharding.of(config.zero, workers=1)
    assert found.deepspeed == (choose_engine(config, 1) == "deepspeed")
    assert Sharding.of(config.zero, workers=2).stage == stage


def test_stages_that_shard_nothing_alone_give_the_same_model_bit_for_bit(digits, tmp_path):
    plain, staged = (
        train(make_job(digits, tmp_path / str(stage), epochs=1, workers=1, zero={"stage": stage}), FakeWorker())
        for stage in (0, 2)
    )
    assert staged.facts["engine"] == "torch"
    assert staged.weights.read_bytes() == plain.weights.read_bytes()
    assert set(staged.facts["start_up_s"]) >= {"data", "model", "engine", "first_step"}
