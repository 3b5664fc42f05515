"""The average of the weights: what it is, that it is what is kept, and that a kill changes nothing."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from torch import nn

from components.train.average import WeightAverage
from components.train.config import TrainConfig
from components.train.loop import train
from tests.components.train.jobs import FakeWorker, Stopped, make_job

CNN = {"architecture": "cnn", "channels": [4]}
"""With running statistics."""
EMA = {"ema": {"decay": 0.9}}


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def test_the_average_is_that_of_the_formula():
    module = nn.Linear(1, 1, bias=False)
    module.weight.data.fill_(0.0)
    average, expected = WeightAverage(module, decay=0.5), 0.0
    for step in range(1, 20):
        module.weight.data.fill_(float(step))
        average.update()
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * step
    with average.in_place():
        assert module.weight.item() == pytest.approx(expected)
    assert module.weight.item() == 19.0


def test_frozen_weights_are_not_averaged():
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    module[0].requires_grad_(False)
    assert set(WeightAverage(module, 0.9).values) == {"1.weight", "1.bias"}


def test_it_is_kept_in_a_file(tmp_path):
    average = WeightAverage(nn.Linear(2, 2), 0.9)
    average.update()
    average.hold_state(tmp_path / "average.safetensors", copy=False)()
    other = WeightAverage(nn.Linear(2, 2), 0.9)
    other.load(tmp_path / "average.safetensors")
    assert other.updates == 1
    assert torch.equal(other.values["weight"], average.values["weight"])


@pytest.mark.parametrize("stage", [0, 2])
def test_the_average_is_validated_and_kept_and_the_training_is_as_without(stage, digits, tmp_path):
    values = {"zero": {"stage": stage}, "learning_rate": 1e-2}
    plain = train(make_job(digits, tmp_path / "plain", CNN, **values), FakeWorker())
    averaged = train(make_job(digits, tmp_path / "averaged", CNN, **values, **EMA), FakeWorker())
    losses = [[entry["train_loss"] for entry in result.history] for result in (plain, averaged)]
    assert losses[0] == losses[1]
    assert plain.history[-1]["loss"] != averaged.history[-1]["loss"]
    first, second = load_file(plain.weights), load_file(averaged.weights)
    assert first.keys() == second.keys()
    assert not torch.equal(first["classifier.weight"], second["classifier.weight"])


@pytest.mark.parametrize("stage", [0, 2])
def test_a_stop_in_mid_epoch_changes_nothing_of_it(stage, digits, tmp_path):
    values = {"zero": {"stage": stage}, "epochs": 3, "checkpoint_every_steps": 5, **EMA}
    undisturbed = train(make_job(digits, tmp_path / "whole", CNN, **values), FakeWorker())
    job = make_job(digits, tmp_path / "stopped", CNN, **values)
    with pytest.raises(Stopped):
        train(job, FakeWorker(stop_at=2))
    resumed = train(job, FakeWorker())
    assert resumed.facts["resumed_from_step"] == 15
    assert resumed.weights.read_bytes() == undisturbed.weights.read_bytes()
    assert resumed.history == undisturbed.history


def test_sharded_weights_have_no_average():
    with pytest.raises(ValidationError, match="ema averages whole weights"):
        TrainConfig.model_validate({"ema": {}, "zero": {"stage": 3}})
