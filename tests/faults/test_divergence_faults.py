"""Row A15: losses that are not a number, infinite or huge, for one step or for six in a row."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from components.artifacts import Artifact
from components.errors import StageError
from components.train import loop, saving
from components.train.job import TrainJob
from components.train.loop import train
from tests.components.train.jobs import FakeWorker, make_job

pytestmark = [pytest.mark.faults, pytest.mark.usefixtures("one_thread")]

FACTORS = {"nan": math.nan, "inf": math.inf, "huge": 1e6}
STEP = 11
OVERFLOWING = {
    "learning_rate": 1e38, "gradient_clipping": 0, "optimizer": {"name": "sgd"}, "schedule": {"name": "constant",
    "warmup": 0}, "max_steps": 1, "validate_every_steps": 1,
}  # fmt: skip
"""One step whose loss and gradient are finite, and its weights are not."""


def multiply_losses(monkeypatch: pytest.MonkeyPatch, factor: float, *steps: int) -> None:
    """Makes the losses of some steps (counted by calls) so many times as large."""
    calls, whole = iter(range(10_000)), loop.batch_loss
    monkeypatch.setattr(loop, "batch_loss", lambda *given: whole(*given) * (factor if next(calls) in steps else 1.0))


def kept_weights(job: TrainJob) -> list[torch.Tensor]:
    """Everything that the work folder holds of them: checkpoints and the best ones."""
    tensors = [value for path in job.work_folder.rglob("*.safetensors") for value in load_file(path).values()]
    for path in job.work_folder.rglob("state.pt"):
        tensors += torch.load(path, weights_only=True)["module"].values()
    return tensors


@pytest.mark.parametrize("count", [1, 6])
@pytest.mark.parametrize("what", FACTORS)
def test_A15_such_steps_are_left_out_or_rolled_back_and_training_goes_on(
    what: str, count: int, digits: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    multiply_losses(monkeypatch, FACTORS[what], *range(STEP, STEP + count))
    job = make_job(digits, tmp_path / "job", checkpoint_every_steps=2, learning_rate=1e-2)
    worker = FakeWorker()
    result = train(job, worker)
    skipped = 0 if what == "huge" else count  # a clipped gradient does no harm
    assert result.facts["skipped_steps"] == skipped
    assert result.facts["rollbacks"] == (1 if skipped == 6 else 0)
    assert all(f"step {STEP + 1 + number} " in worker.warnings[number] for number in range(skipped))
    assert [entry["epoch"] for entry in result.history] == [1, 2, 3, 4]
    assert result.metrics["accuracy"] > 0.5
    assert kept_weights(job) and all(bool(value.isfinite().all()) for value in kept_weights(job))


def test_A15_weights_that_are_not_finite_are_never_kept(
    digits: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    multiply_losses(monkeypatch, 1e6, 0)
    job = make_job(digits, tmp_path / "job", **OVERFLOWING)
    with pytest.raises(StageError, match="the weights are not finite after step 1, and are not kept"):
        train(job, FakeWorker())
    assert kept_weights(job) == []
    assert not list((job.work_folder / "checkpoints").glob("step-*"))


def test_A15_control_without_the_guard_such_weights_become_the_best_ones(
    digits: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    multiply_losses(monkeypatch, 1e6, 0)
    for module in (loop, saving):
        monkeypatch.setattr(module, "check_weights", lambda session: None)
    job = make_job(digits, tmp_path / "job", **OVERFLOWING)
    result = train(job, FakeWorker())
    assert not all(bool(value.isfinite().all()) for value in load_file(result.weights).values())


def test_A15_control_a_bare_loop_takes_such_a_step() -> None:
    """And AdamW makes every weight not a number, although the gradient is clipped."""
    model = torch.nn.Linear(4, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    (model(torch.ones(1, 4)).sum() * math.nan).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    assert all(bool(value.isnan().all()) for value in model.parameters())
