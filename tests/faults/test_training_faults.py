"""Rows A of the fault matrix that take a training of several workers."""

from __future__ import annotations

from pathlib import Path

import pytest

from components.artifacts import Artifact
from components.train.loop import train
from tests.components.train.jobs import FakeWorker, make_job, train_pair
from tests.faults.conftest import FULL

pytestmark = [pytest.mark.faults, pytest.mark.usefixtures("one_thread")]


@pytest.mark.skipif(not FULL, reason="test_checkpoint_kills.py has two workers as well; full counts only")
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
