"""Row A13 of the fault matrix: a training goes on with another number of workers."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import load_file

from components.artifacts import Artifact
from components.train.loop import train
from tests.builders import build_dataset
from tests.components.train.jobs import FakeWorker, make_job
from tests.components.train.ranks import gather_state, run_ranks, train_ranks

pytestmark = pytest.mark.faults

PLAIN = {"architecture": "mlp", "hidden_sizes": [16], "dropout": 0.0}


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return build_dataset(tmp_path_factory.mktemp("digits"), rows=300)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_A13_weights_and_moments_are_divided_anew_bit_for_bit(stage: int, digits: Artifact, tmp_path: Path) -> None:
    model = {"architecture": "cnn", "channels": [4]}  # its running statistics must come along
    job = make_job(digits, tmp_path / "job", model, workers=4, zero={"stage": stage})
    for world_size in (2, 1, 4, 2):
        assert run_ranks(gather_state, job, world_size, tmp_path) == [0] * world_size
    states = [load_file(job.work_folder / "state" / f"{number}.safetensors") for number in range(7)]
    for before, after in zip(states[0::2], states[1::2], strict=False):
        assert before.keys() == after.keys()
        assert all(before[name].equal(after[name]) for name in before)
    assert states[-1]["steps"].tolist() == [8.0]


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_A13_the_loss_is_that_of_one_worker_at_every_later_step(stage: int, digits: Artifact, tmp_path: Path) -> None:
    """In fp32 without dropout only sums are added in another order; every row is trained when it would have been."""
    values = {"epochs": 4, "learning_rate": 1e-2, "validate_every_steps": 2}
    whole = train(make_job(digits, tmp_path / "whole", PLAIN, **values), FakeWorker())
    job = make_job(digits, tmp_path / "job", PLAIN, workers=4, zero={"stage": stage}, **values)
    for world_size, stop_at in ((1, 3), (2, 6), (4, 9), (2, 12), (1, 0)):
        train_ranks(job, world_size, tmp_path, stop_at)
    parts = train(job, FakeWorker())
    assert [entry["step"] for entry in parts.history] == list(range(2, 33, 2))
    for entry, expected in zip(parts.history, whole.history, strict=True):
        for name in ("train_loss", "loss"):
            assert entry[name] == pytest.approx(expected[name], abs=1e-3)
