from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import torch

from components.artifacts import Artifact
from components.errors import DiskFullError, StageError
from components.models.folder import save_weights
from components.train import disk
from components.train.disk import Place, WriteError, decide, expected_bytes, together, write_patiently
from components.train.group import Group
from components.train.loop import train
from components.train.torch_engine import write_torch
from tests.builders import build_dataset
from tests.components.train.jobs import FakeWorker, make_job

ALONE = Group(0, 1, "cpu")


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return build_dataset(tmp_path_factory.mktemp("digits"), rows=300)


def fail(number: int) -> None:
    raise OSError(number, os.strerror(number), "/disk/state.pt")


def test_a_failure_is_told_with_rank_file_and_reason() -> None:
    with pytest.raises(WriteError) as caught:
        together(ALONE, lambda: fail(errno.EIO))
    assert caught.value.failure == disk.Failure(0, errno.EIO, "/disk/state.pt", "Input/output error")


def test_a_full_disk_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "POLL_INTERVAL_S", 0.0)
    monkeypatch.setattr(disk, "RETRY_INTERVAL_S", 0.0)
    answers, told, discarded = [errno.ENOSPC, errno.EDQUOT, 0], [], []

    def write() -> None:
        number = answers.pop(0)
        together(ALONE, lambda: fail(number) if number else None)

    write_patiently(ALONE, Place("the checkpoint", tmp_path, 1000), write, lambda: discarded.append(1), told.append)
    assert answers == [] and len(discarded) == 2
    assert len(told) == 2 and "disk is full (/disk/state.pt)" in told[0] and "training goes on" in told[1]


@pytest.mark.parametrize(("number", "error"), [(errno.ENOSPC, DiskFullError), (errno.EROFS, StageError)])
def test_what_does_not_mend_ends_it(
    number: int, error: type[Exception], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk, "POLL_INTERVAL_S", 0.0)
    monkeypatch.setattr(disk, "WAIT_LIMIT_S", 0.0)
    place = Place("the checkpoint", tmp_path, 1000)
    with pytest.raises(error, match=r"the checkpoint .*/disk/state.pt|/disk/state.pt.* the checkpoint"):
        write_patiently(ALONE, place, lambda: together(ALONE, lambda: fail(number)), lambda: None, lambda text: None)


def test_it_is_tried_again_once_there_is_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = Place("the checkpoint", tmp_path, 1000)
    now_s = disk.time.monotonic()
    monkeypatch.setattr(disk, "free_bytes", lambda folder: 1500)
    assert decide(place, now_s, now_s, free=10) == "try"
    assert decide(place, now_s, now_s, free=1500) == "wait"  # it was not this that was lacking
    assert decide(place, now_s, now_s - disk.RETRY_INTERVAL_S, free=1500) == "try"
    assert decide(place, now_s - disk.WAIT_LIMIT_S, now_s, free=10) == "give up"


@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adamw"])
def test_the_expected_size_is_about_that_of_a_checkpoint(optimizer: str, digits: Artifact, tmp_path: Path) -> None:
    model = {"architecture": "mlp", "hidden_sizes": [3000]}
    job = make_job(digits, tmp_path / "work", model, epochs=1, optimizer={"name": optimizer}, max_steps=2)
    parameters = train(job, FakeWorker()).facts["parameters"]
    newest = next((job.work_folder / "checkpoints").glob("step-*"))
    size_bytes = sum(path.stat().st_size for path in newest.rglob("*") if path.is_file())
    assert expected_bytes(parameters, optimizer, ema=False) == pytest.approx(size_bytes, rel=0.15)


def test_writers_fail_with_the_systems_own_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for write in (save_weights, lambda path, state: write_torch(state, path)):
        with pytest.raises(OSError) as caught:
            write(tmp_path / "file" / "state", {"weights": torch.zeros(1)})
        assert caught.value.errno == errno.ENOTDIR
