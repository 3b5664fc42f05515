"""fp16's loss scaling. Its arithmetic is that of a GPU; on a CPU, where the product refuses it, torch emulates it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from components.errors import SpecError
from components.train import session as session_module
from components.train.device import Hardware, plan_placement
from components.train.loop import train
from components.train.loss_scale import GROWTH_STEPS, LARGEST, LossScale
from components.train.preflight import check_machine
from tests.components.train.jobs import FakeWorker, Stopped, make_job

MODEL = {"architecture": "mlp", "hidden_sizes": [16], "dropout": 0.0}


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture
def fp16_here(monkeypatch):
    """Lets a training in fp16 through to this CPU."""
    whole = session_module.plan_placement
    monkeypatch.setattr(
        session_module,
        "plan_placement",
        lambda hardware, workers, precision, rank: replace(whole(hardware, workers, "fp32", rank), precision=precision),
    )


def test_the_scale_halves_on_overflow_and_doubles_after_many_good_steps():
    scale = LossScale(scale=8.0)
    assert scale.shrink() and scale.scale == 4.0
    for _ in range(GROWTH_STEPS):
        scale.grow()
    assert (scale.scale, scale.good_steps) == (8.0, 0)


def test_the_scale_has_bounds():
    low, high = LossScale(scale=1.0), LossScale(scale=LARGEST, good_steps=GROWTH_STEPS - 1)
    high.grow()
    assert not low.shrink()
    assert (low.scale, high.scale) == (1.0, LARGEST)


@pytest.mark.parametrize("stage", [0, 1, 3])
def test_a_scale_that_was_too_large_costs_a_step_and_no_rollback(stage, digits, tmp_path, monkeypatch, fp16_here):
    overflow(monkeypatch, 9, 10)
    values = {"precision": "fp16", "epochs": 3, "max_skipped_steps": 0, "zero": {"stage": stage}}
    result = train(make_job(digits, tmp_path, MODEL, **values), FakeWorker())
    facts = result.facts
    assert (facts["overflowed_steps"], facts["skipped_steps"], facts["rollbacks"]) == (2, 0, 0)
    assert facts["precision"]["precision"] == "fp16"
    losses = [entry["train_loss"] for entry in result.history]
    assert losses[-1] < losses[0]


def overflow(monkeypatch, *steps):
    """Makes the loss of some steps so large that the scale is too much for it; as float32 it is still finite."""
    from components.train import loop

    calls, whole = iter(range(10_000)), loop.batch_loss
    monkeypatch.setattr(loop, "batch_loss", lambda *given: whole(*given) * (1e37 if next(calls) in steps else 1.0))


@pytest.mark.parametrize("stage", [0, 2])
def test_scaling_changes_nothing_but_rounding(stage, digits, tmp_path, fp16_here):
    values = {"epochs": 2, "zero": {"stage": stage}}
    full, half = (
        train(make_job(digits, tmp_path / precision, MODEL, precision=precision, **values), FakeWorker())
        for precision in ("fp32", "fp16")
    )
    assert half.metrics["loss"] == pytest.approx(full.metrics["loss"], rel=2e-2)


def test_without_any_scale_left_a_gradient_that_is_not_finite_is_what_it_is(digits, tmp_path, monkeypatch, fp16_here):
    monkeypatch.setattr("components.train.torch_engine.LossScale", lambda: LossScale(scale=1.0))
    from components.train import loop

    calls, whole = iter(range(10_000)), loop.batch_loss
    monkeypatch.setattr(loop, "batch_loss", lambda *given: whole(*given) * (float("nan") if next(calls) == 9 else 1.0))
    facts = train(make_job(digits, tmp_path, MODEL, precision="fp16", epochs=2), FakeWorker()).facts
    assert (facts["overflowed_steps"], facts["skipped_steps"]) == (0, 1)


def test_a_resumed_training_goes_on_with_its_scale(digits, tmp_path, monkeypatch, fp16_here):
    values = {"precision": "fp16", "epochs": 3}
    overflow(monkeypatch, 3, 24 + 3)  # of the undisturbed training, and of the stopped one
    undisturbed = train(make_job(digits, tmp_path / "whole", MODEL, **values), FakeWorker())
    job = make_job(digits, tmp_path / "stopped", MODEL, **values)
    with pytest.raises(Stopped):
        train(job, FakeWorker(stop_at=1))
    resumed = train(job, FakeWorker())
    assert resumed.facts["overflowed_steps"] == undisturbed.facts["overflowed_steps"] == 1
    assert resumed.weights.read_bytes() == undisturbed.weights.read_bytes()


def test_a_cpu_is_refused_before_anything_starts(digits, tmp_path):
    job = make_job(digits, tmp_path, precision="fp16")
    (error,) = check_machine(job.train)
    assert error.field == "train.precision" and "for GPUs" in error.message
    with pytest.raises(SpecError, match="for GPUs"):
        train(job, FakeWorker())


def test_gpus_without_bf16_train_in_fp16():
    placement = plan_placement(Hardware(gpus=1, cores=4, gpu_bf16=False), 1, "auto")
    assert placement.precision == "fp16"
