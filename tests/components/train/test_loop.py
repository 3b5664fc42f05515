"""The loop with both engines: what it learns, reports and keeps, and that a kill changes nothing."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from components.artifacts.dataset import open_split
from components.errors import CheckpointError, PreemptedError, SpecError, StageError
from components.models.build import build_model
from components.tasks import get_task
from components.train import fp32_products, loop
from components.train.feed import Feed
from components.train.loop import train
from components.train.preemption import AskedToStop
from tests.components.train.jobs import FakeWorker, Stopped, make_job, train_and_die

ENGINES = pytest.mark.parametrize("stage", [0, 2])


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def same(first, second):
    """Whether two results are equal bit for bit, but for the clock."""
    return (
        first.weights.read_bytes() == second.weights.read_bytes()
        and first.history == second.history
        and first.best_epoch == second.best_epoch
    )


@ENGINES
def test_training_learns_and_gives_the_best_epoch(stage, digits, tmp_path):
    job = make_job(digits, tmp_path, epochs=8, learning_rate=1e-2, zero={"stage": stage})
    result = train(job, FakeWorker())
    losses = [epoch["train_loss"] for epoch in result.history]
    assert losses[-1] < 0.6 * losses[0]
    best = max(result.history, key=lambda epoch: (epoch["accuracy"], -epoch["loss"]))
    assert (result.best_epoch, result.metrics["accuracy"]) == (best["epoch"], best["accuracy"])
    assert result.facts["engine"] == ("deepspeed" if stage else "torch")


@ENGINES
def test_kept_weights_are_those_of_the_best_epoch(stage, digits, tmp_path):
    job = make_job(digits, tmp_path, zero={"stage": stage})
    result = train(job, FakeWorker())
    task = get_task(job.task)
    preprocessing = task.load(job.dataset / "preprocess")
    module = build_model(job.model, preprocessing.model_inputs(), 10).eval()
    module.load_state_dict(load_file(result.weights))
    split = open_split(job.dataset, "validation")
    inputs, _ = Feed(split, preprocessing, "cpu").batch(np.arange(len(split)))
    metrics = task.metrics(module(**inputs).detach().numpy(), split.labels())
    assert metrics == pytest.approx(dict(result.metrics), rel=1e-5)


def test_sharding_changes_nothing_but_rounding(digits, tmp_path):
    model = {"architecture": "mlp", "hidden_sizes": [16], "dropout": 0}
    losses = []
    for stage in (0, 1, 2, 3):
        job = make_job(digits, tmp_path / str(stage), model, epochs=2, zero={"stage": stage})
        losses.append([epoch["train_loss"] for epoch in train(job, FakeWorker()).history])
    for other in losses[1:]:
        assert other == pytest.approx(losses[0], rel=1e-4)  # sums over flattened shards in another order


def test_accumulation_changes_nothing_but_rounding(digits, tmp_path):
    model = {"architecture": "mlp", "hidden_sizes": [16], "dropout": 0}
    whole = train(make_job(digits, tmp_path / "whole", model, epochs=2), FakeWorker())
    for stage in (0, 1, 2, 3):
        values = {"epochs": 2, "gradient_accumulation_steps": 4, "zero": {"stage": stage}}
        parts = train(make_job(digits, tmp_path / str(stage), model, **values), FakeWorker())
        assert parts.metrics["loss"] == pytest.approx(whole.metrics["loss"], rel=1e-4), stage


@ENGINES
def test_killed_in_mid_epoch_ends_bit_for_bit_the_same(stage, digits, tmp_path):
    undisturbed = train(make_job(digits, tmp_path / "whole", zero={"stage": stage}), FakeWorker())
    job = make_job(digits, tmp_path / "killed", zero={"stage": stage})
    train_and_die(job, die_at=21)
    worker = FakeWorker()
    resumed = train(job, worker)
    assert [epoch for epoch, _ in worker.reports] == [2, 3, 4]  # the checkpoint's own epoch is told again
    assert resumed.facts["resumed_from_step"] == 16
    assert same(resumed, undisturbed)


def test_killed_between_two_checkpoints_of_an_epoch_ends_bit_for_bit_the_same(digits, tmp_path):
    values = {"checkpoint_every_steps": 3, "validate_every_steps": 7, "max_steps": 24, "keep_checkpoints": 3}
    undisturbed = train(make_job(digits, tmp_path / "whole", **values), FakeWorker())
    assert [entry["step"] for entry in undisturbed.history] == [7, 14, 21, 24]
    job = make_job(digits, tmp_path / "killed", **values)
    train_and_die(job, die_at=20)
    resumed = train(job, FakeWorker())
    # The newest may have been in the making: it is written while training goes on.
    assert resumed.facts["resumed_from_step"] in (15, 18)
    assert same(resumed, undisturbed)


def test_activations_computed_again_change_nothing(digits, tmp_path):
    model = {"architecture": "vit", "patch_size": 4, "hidden_size": 16, "num_hidden_layers": 2, "dropout": 0.1}
    kept, again = (
        train(make_job(digits, tmp_path / str(flag), model, epochs=1, activation_checkpointing=flag), FakeWorker())
        for flag in (False, True)
    )
    assert again.metrics["loss"] == pytest.approx(kept.metrics["loss"], rel=1e-5)


def test_activations_of_what_is_no_transformer_are_refused(digits, tmp_path):
    with pytest.raises(SpecError) as caught:
        train(make_job(digits, tmp_path, activation_checkpointing=True), FakeWorker())
    assert caught.value.field == "train.activation_checkpointing"


@pytest.mark.parametrize(
    "zero",
    [
        {"stage": 2, "offload_optimizer": "cpu"},
        {"stage": 3, "offload_optimizer": "cpu", "offload_parameters": "cpu"},
    ],
    ids=["optimizer", "optimizer and parameters"],
)
def test_offload_changes_nothing_but_rounding(zero, digits, tmp_path):
    model = {"architecture": "mlp", "hidden_sizes": [16], "dropout": 0.0}
    jobs = [make_job(digits, tmp_path / str(n), model, epochs=2, zero=each) for n, each in enumerate(({}, zero))]
    kept, offloaded = (train(job, FakeWorker()) for job in jobs)
    assert offloaded.metrics["loss"] == pytest.approx(kept.metrics["loss"], rel=1e-3)
    train(make_job(digits, tmp_path / "1", model, epochs=2, zero=zero), FakeWorker())


def spoil(monkeypatch, *steps):
    """Makes the loss of some steps (counted by calls) not a number."""
    from components.train import loop

    calls, whole = iter(range(10_000)), loop.batch_loss
    monkeypatch.setattr(
        loop, "batch_loss", lambda *given: whole(*given) * (float("nan") if next(calls) in steps else 1.0)
    )


@ENGINES
def test_a_step_without_a_finite_gradient_changes_nothing_and_is_told(stage, digits, tmp_path, monkeypatch):
    from components.train import loop

    spoil(monkeypatch, 9, 10)
    seen, whole = [], loop.train_step

    def watched(session):
        before = [value.detach().clone() for value in session.engine.module.parameters()]
        result = whole(session)
        seen.append(all(map(torch.equal, before, session.engine.module.parameters())))
        return result

    monkeypatch.setattr(loop, "train_step", watched)
    worker = FakeWorker()
    result = train(make_job(digits, tmp_path, epochs=2, zero={"stage": stage}), worker)
    assert [step for step, unchanged in enumerate(seen) if unchanged] == [9, 10]
    assert result.facts["skipped_steps"] == 2
    assert "step 10 " in worker.warnings[0] and "step 11 " in worker.warnings[1]
    assert all(math.isfinite(entry["train_loss"]) for entry in result.history)


def test_after_too_many_in_a_row_a_checkpoint_is_taken_back(digits, tmp_path, monkeypatch):
    spoil(monkeypatch, 10, 11, 12)
    worker = FakeWorker()
    result = train(make_job(digits, tmp_path, max_skipped_steps=2), worker)
    assert (result.facts["skipped_steps"], result.facts["rollbacks"]) == (3, 1)
    assert "goes back to 8" in worker.warnings[-1]
    assert [entry["step"] for entry in result.history] == [8, 16, 24, 32]


@pytest.mark.parametrize("first", [2, 10], ids=["before the first checkpoint", "again after it"])
def test_when_going_back_does_not_help_training_ends(first, digits, tmp_path, monkeypatch):
    spoil(monkeypatch, *range(first, 100))
    with pytest.raises(StageError, match="3 times in a row"):
        train(make_job(digits, tmp_path, max_skipped_steps=2), FakeWorker())


def test_a_sweep_stops_a_trial_from_its_report_and_the_next_one_trains(digits, tmp_path):
    job = make_job(digits, tmp_path / "stopped", zero={"stage": 2})
    with pytest.raises(Stopped):
        train(job, FakeWorker(stop_at=2))
    assert (job.work_folder / "checkpoints" / "step-00000016" / "manifest.json").exists()
    assert train(job, FakeWorker()).facts["resumed_from_step"] == 16


def test_a_finished_job_answers_from_its_folder(digits, tmp_path):
    job, worker = make_job(digits, tmp_path, epochs=1), FakeWorker()
    result = train(job, FakeWorker())
    assert train(job, worker) == result
    assert worker.reports == []


def test_early_stop_counts_epochs_without_improvement(digits, tmp_path):
    job = make_job(digits, tmp_path, epochs=30, learning_rate=1e-9, early_stop={"patience": 2})
    result = train(job, FakeWorker())
    accuracies = [epoch["accuracy"] for epoch in result.history]
    assert len(accuracies) == accuracies.index(max(accuracies)) + 1 + 2
    assert len(accuracies) < 30


def test_the_best_epoch_is_kept_however_little_better_it_is(digits, tmp_path):
    patient = {"patience": 3, "min_delta": 1.0}  # no epoch is that much better than the first
    result = train(make_job(digits, tmp_path, epochs=30, early_stop=patient), FakeWorker())
    assert len(result.history) == 4
    best = max(result.history, key=lambda epoch: (epoch["accuracy"], -epoch["loss"]))
    assert result.best_epoch == best["epoch"] > 1


def test_a_loss_that_is_no_number_is_one_clear_error(digits, tmp_path):
    job = make_job(digits, tmp_path, learning_rate=1e30, gradient_clipping=0, optimizer={"name": "sgd"})
    with pytest.raises(StageError, match=r"Training diverged: .* (not finite|the loss is)") as caught:
        train(job, FakeWorker())
    assert caught.value.field == "train.learning_rate"


def test_another_job_in_the_folder_is_refused(digits, tmp_path):
    with pytest.raises(Stopped):
        train(make_job(digits, tmp_path), FakeWorker(stop_at=1))
    with pytest.raises(CheckpointError, match="another job"):
        train(make_job(digits, tmp_path, learning_rate=0.5), FakeWorker())


def test_streamed_and_kept_batches_are_the_same(digits):
    split = open_split(digits.path, "train")
    preprocessing = get_task("image-classification").load(digits.path / "preprocess")
    rows = np.array([5, 3, 200])
    kept, streamed = (Feed(split, preprocessing, "cpu", limit).batch(rows) for limit in (1 << 30, 0))
    assert torch.equal(kept[0]["pixel_values"], streamed[0]["pixel_values"])
    assert torch.equal(kept[1], streamed[1])


def test_bf16_trains(digits, tmp_path):
    result = train(make_job(digits, tmp_path, epochs=2, precision="bf16"), FakeWorker())
    assert result.facts["precision"]["precision"] == "bf16"
    assert {str(value.dtype) for value in load_file(result.weights).values()} == {"torch.float32"}


@pytest.mark.parametrize("stage", [0, 1])
def test_a_resumed_training_multiplies_bf16_as_it_began(digits, tmp_path, monkeypatch, stage):
    values, kept = {"epochs": 3, "precision": "bf16", "zero": {"stage": stage}}, []
    for faster in (True, False):
        monkeypatch.setattr(fp32_products, "multiplies_fp32_faster", lambda found=faster: found)
        undisturbed = train(make_job(digits, tmp_path / f"whole {faster}", **values), FakeWorker())
        assert undisturbed.facts["precision"]["products"] == ("fp32" if faster else "bf16")
        job = make_job(digits, tmp_path / f"stopped {faster}", **values)
        with pytest.raises(Stopped):
            train(job, FakeWorker(stop_at=1))
        monkeypatch.setattr(fp32_products, "multiplies_fp32_faster", lambda found=faster: not found)
        resumed = train(job, FakeWorker())
        assert resumed.weights.read_bytes() == undisturbed.weights.read_bytes()
        kept.append(undisturbed.weights.read_bytes())
    assert kept[0] != kept[1]


@pytest.mark.parametrize("left", [1, 2], ids=["the second", "the last"])
@pytest.mark.parametrize("stage", [0, 2])
def test_a_validation_that_is_left_is_made_again(digits, tmp_path, monkeypatch, stage, left):
    values = {"epochs": 3, "zero": {"stage": stage}}
    undisturbed = train(make_job(digits, tmp_path / "whole", **values), FakeWorker())
    job, validate = make_job(digits, tmp_path / "stopped", **values), loop.validate

    def leave(session):
        if session.progress.epoch == left:
            raise AskedToStop
        return validate(session)

    step = 8 * (left + 1)
    with monkeypatch.context() as patch:
        patch.setattr(loop, "validate", leave)
        with pytest.raises(PreemptedError, match=f"after step {step}"):
            train(job, FakeWorker())
    resumed = train(job, FakeWorker())
    assert resumed.facts["resumed_from_step"] == step
    assert same(resumed, undisturbed)
