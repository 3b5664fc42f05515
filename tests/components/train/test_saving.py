from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch

from components.artifacts import Artifact
from components.errors import StageError
from components.train import loop, saving
from components.train.job import TrainJob
from components.train.loop import train
from components.train.torch_engine import copy_to_host
from tests.builders import build_dataset
from tests.components.train.jobs import FakeWorker, PairWorker, make_job
from tests.components.train.ranks import run_ranks

OFTEN = {"epochs": 2, "checkpoint_every_steps": 3, "keep_checkpoints": 9, "ema": {"decay": 0.9}}


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return build_dataset(tmp_path_factory.mktemp("digits"), rows=300)


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def checkpoint_of(job: TrainJob, step: int) -> Path:
    return job.work_folder / "checkpoints" / f"step-{step:08d}"


def write_late(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Makes each background checkpoint's thread wait for the next step; gives the steps at which they were begun."""
    begun: list[int] = []
    stepped = threading.Event()
    step, save, settle = loop.train_step, loop.save, loop.settle

    def train_step(session):
        outcome = step(session)
        stepped.set()
        return outcome

    def save_late(session, copy=False):
        if copy:
            stepped.clear()
            hold = session.engine.hold_state
            begun.append(session.progress.step)

            def hold_late(folder, copy):
                write = hold(folder, copy)
                return lambda: (stepped.wait(30), write())

            monkeypatch.setattr(session.engine, "hold_state", hold_late)
        save(session, copy)

    def settle_now(session):
        stepped.set()
        settle(session)

    monkeypatch.setattr(loop, "train_step", train_step)
    monkeypatch.setattr(loop, "save", save_late)
    monkeypatch.setattr(loop, "settle", settle_now)
    return begun


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_a_checkpoint_written_beside_later_steps_holds_its_own_step(
    digits: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: int
) -> None:
    values = {**OFTEN, "zero": {"stage": stage}, "ema": None if stage == 3 else OFTEN["ema"]}
    plain, beside = (make_job(digits, tmp_path / name, **values, checkpoint_in_background=name == "beside")
                     for name in ("plain", "beside"))  # fmt: skip
    expected = train(plain, FakeWorker())
    with monkeypatch.context() as patch:
        assert write_late(patch) is not None
        result = train(beside, FakeWorker())
    assert result.weights.read_bytes() == expected.weights.read_bytes()
    for step in (3, 6, 9, 12, 15):
        pairs = [sorted(path for path in checkpoint_of(job, step).rglob("*.pt")) for job in (plain, beside)]
        assert pairs[0]
        for left, right in zip(*pairs, strict=True):
            assert_equal(torch.load(left, weights_only=False), torch.load(right, weights_only=False))


def assert_equal(left, right) -> None:
    if isinstance(left, torch.Tensor):
        assert torch.equal(left, right)
    elif isinstance(left, dict):
        assert left.keys() == right.keys()
        for name in left:
            assert_equal(left[name], right[name])
    elif isinstance(left, (list, tuple)):
        for one, other in zip(left, right, strict=True):
            assert_equal(one, other)


def test_the_next_checkpoint_waits_for_the_one_before(
    digits: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = write_late(monkeypatch)
    job = make_job(digits, tmp_path / "work", **OFTEN)
    train(job, FakeWorker())
    assert begun == [3, 6, 9, 12, 15]
    assert all(checkpoint_of(job, step).exists() for step in begun)


def test_a_part_that_cannot_be_written_ends_the_training_with_its_reason(
    digits: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object, **options: object) -> None:
        raise OSError(5, "Input/output error")

    job = make_job(digits, tmp_path / "work", **OFTEN)
    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", refuse)
        with pytest.raises(StageError, match=r"Worker 0 could not write the checkpoint of step 3 \(Input/output error"):
            train(job, FakeWorker())
    assert train(job, FakeWorker()).facts["resumed_from_step"] is None


def fail_to_write_on_one(job: TrainJob, worker: PairWorker) -> None:
    """Ends well only if both workers are told why worker 1 could not write."""

    def refuse(*args: object, **options: object) -> None:
        raise OSError(5, "Input/output error")

    with pytest.MonkeyPatch.context() as patch:
        if worker.rank == 1:
            patch.setattr(torch, "save", refuse)
        with pytest.raises(StageError, match=r"Worker 1 could not write .*Input/output error"):
            train(job, worker)


def test_all_workers_hear_of_one_that_cannot_write(digits: Artifact, tmp_path: Path) -> None:
    job = make_job(digits, tmp_path / "work", **{**OFTEN, "workers": 2, "zero": {"stage": 2}})
    assert run_ranks(fail_to_write_on_one, job, 2, tmp_path) == [0, 0]


def test_a_checkpoint_that_was_begun_is_committed_although_the_next_step_fails(
    digits: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, step = make_job(digits, tmp_path / "work", **OFTEN), loop.train_step

    def fail_later(session):
        if session.progress.step == 3:
            raise ValueError
        return step(session)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "train_step", fail_later)
        with pytest.raises(ValueError):
            train(job, FakeWorker())
    assert train(job, FakeWorker()).facts["resumed_from_step"] == 3


def test_what_a_killed_save_left_behind_goes_with_the_next(digits: Artifact, tmp_path: Path) -> None:
    job = make_job(digits, tmp_path / "work", epochs=1)
    left = job.work_folder / "checkpoints" / ".step-00000005.partial"
    left.mkdir(parents=True)
    (left / "state.pt").write_bytes(b"half")
    train(job, FakeWorker())
    assert not left.exists()


def test_a_copy_stays_as_it_is() -> None:
    live = {"weights": torch.ones(4)[1:3], "steps": [1, (torch.zeros(1), None)]}
    copy = copy_to_host(live)
    live["weights"].add_(1)
    live["steps"].append(2)
    assert torch.equal(copy["weights"], torch.ones(2))
    assert len(copy["steps"]) == 2 and copy["weights"].untyped_storage().nbytes() == 8
    assert saving.states_name(1) == "random.rank1.json"
