"""What only several processes can show of a sharded training, beside the rows of the fault matrix."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from components.artifacts import Artifact
from components.train.loop import train
from tests.builders import build_dataset
from tests.components.train.jobs import FakeWorker, make_job, train_and_die, train_and_tell

pytestmark = pytest.mark.faults


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return build_dataset(tmp_path_factory.mktemp("digits"), rows=300)


def read_slowly(rank: int) -> None:
    """Runs in each worker: rank 1 takes long for its batches."""
    from components.train.feed import Feed

    if rank == 1:
        whole = Feed.batch
        Feed.batch = lambda self, rows: (time.sleep(0.03), whole(self, rows))[1]  # type: ignore[method-assign]


def test_a_worker_that_keeps_the_other_waiting_is_named(digits: Artifact, tmp_path: Path) -> None:
    job = make_job(digits, tmp_path, epochs=3, workers=2)
    first, second = train_and_tell(job, tmp_path / "meet", read_slowly)
    assert first["facts"]["straggler"] == 1
    assert first["warnings"] == []
    (warning,) = second["warnings"]
    assert warning.startswith("Worker 1 on ")
    assert first["facts"]["data_wait"] < 0.5


def test_generated_code_ends_bit_for_bit_the_same_after_a_kill(
    digits: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "compiled"))
    whole, killed = (make_job(digits, tmp_path / name, epochs=3, compile=True) for name in ("whole", "killed"))
    undisturbed = train(whole, FakeWorker())
    train_and_die(killed, die_at=13)
    resumed = train(killed, FakeWorker())
    assert resumed.facts["resumed_from_step"] == 8
    assert resumed.weights.read_bytes() == undisturbed.weights.read_bytes()
