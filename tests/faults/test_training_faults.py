"""Rows A of the fault matrix that take a training of several workers."""

from __future__ import annotations

from pathlib import Path

import pytest

from components.artifacts import Artifact
from components.train.loop import train
from tests.builders import build_dataset
from tests.components.train.jobs import FakeWorker, make_job, train_pair

pytestmark = pytest.mark.faults


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return build_dataset(tmp_path_factory.mktemp("digits"), rows=300)


def test_A1_two_workers_killed_end_bit_for_bit_the_same(digits: Artifact, tmp_path: Path) -> None:
    model = {"architecture": "cnn", "channels": [4]}  # its running statistics must agree between workers
    values = {"workers": 2, "zero": {"stage": 2}, "epochs": 3}
    whole, killed = (make_job(digits, tmp_path / name, model, **values) for name in ("whole", "killed"))
    assert train_pair(whole, tmp_path / "meet0") == [0, 0]
    assert any(train_pair(killed, tmp_path / "meet1", stop_at=2))
    assert train_pair(killed, tmp_path / "meet2") == [0, 0]
    assert [(killed.work_folder / f"resumed.{rank}").read_text() for rank in (0, 1)] == ["16", "16"]
    first, second = train(killed, FakeWorker()), train(whole, FakeWorker())
    assert first.weights.read_bytes() == second.weights.read_bytes()
    assert first.history == second.history


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_a_checkpoint_of_two_workers_is_continued_by_one(stage: int, digits: Artifact, tmp_path: Path) -> None:
    """The order of the rows stays, so does the loss: in fp32 without dropout only sums are added in another order."""
    model = {"architecture": "mlp", "hidden_sizes": [16], "dropout": 0.0}
    values = {"workers": 2, "zero": {"stage": stage}, "epochs": 4}
    whole = train(make_job(digits, tmp_path / "whole", model, epochs=4), FakeWorker())
    job = make_job(digits, tmp_path / "pair", model, **values)
    assert any(train_pair(job, tmp_path / "meet", stop_at=2))
    worker = FakeWorker()
    alone = train(job, worker)
    assert alone.facts["resumed_from_step"] == 16
    assert "written by 2 workers" in worker.warnings[0]
    for entry, expected in zip(alone.history, whole.history, strict=True):
        assert entry["train_loss"] == pytest.approx(expected["train_loss"], rel=1e-3)
        assert entry["loss"] == pytest.approx(expected["loss"], rel=1e-3)
