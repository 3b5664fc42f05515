"""Row A6: one flipped bit anywhere in a checkpoint is found before a tensor of it is read."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from components.artifacts import Artifact
from components.errors import CheckpointError
from components.train.job import TrainJob
from components.train.loop import train
from tests.components.train.jobs import FakeWorker
from tests.components.train.ranks import train_ranks
from tests.faults.checkpoints import checkpoints_of, copied_job, stopped_job, tiny_job

pytestmark = [pytest.mark.faults, pytest.mark.usefixtures("one_thread")]

SEED = 606
ONE = {"keep_checkpoints": 1}
KINDS: dict[str, dict[str, Any]] = {
    "torch": {"ema": {"decay": 0.9}},
    "zero1": {"zero": {"stage": 1}},
    "zero2": {"zero": {"stage": 2}, "ema": {"decay": 0.9}},
    "zero3": {"zero": {"stage": 3}},
    "two ranks": {"zero": {"stage": 2}, "workers": 2},
}


@pytest.fixture(scope="module", params=KINDS)
def stopped(request: pytest.FixtureRequest, digits: Artifact, tmp_path_factory: pytest.TempPathFactory) -> TrainJob:
    """A job with one checkpoint."""
    folder, values = tmp_path_factory.mktemp("stopped") / "work", {**ONE, **KINDS[request.param]}
    if "workers" not in values:
        return stopped_job(digits, folder, **values)
    job = tiny_job(digits, folder, **values)
    train_ranks(job, job.train.workers, folder.parent, stop_at=2)
    return job


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the functions that read tensors, as they are called."""
    called: list[str] = []

    def watch(module: Any, name: str) -> None:
        real = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *more, **named: called.append(name) or real(*more, **named))

    watch(torch, "load")
    watch(safetensors.torch, "load_file")
    return called


def flip(path: Path, bit: int) -> None:
    """Turns over one bit; a second call puts it back."""
    with path.open("r+b") as handle:
        handle.seek(bit // 8)
        byte = handle.read(1)[0]
        handle.seek(bit // 8)
        handle.write(bytes([byte ^ 1 << bit % 8]))


def files_of(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_A6_every_flipped_bit_is_found(stopped: TrainJob, repeats: Callable[[int, int], int]) -> None:
    """Sampled alike over the files, whatever their sizes."""
    chance, checkpoints = random.Random(SEED), checkpoints_of(stopped)
    folder = checkpoints.path(checkpoints.steps()[-1])
    files = files_of(folder)
    assert len(files) >= 4 and checkpoints.check(folder) is None
    for number in range(repeats(20, 400)):
        path = files[number % len(files)]
        bit = chance.randrange(8 * path.stat().st_size)
        flip(path, bit)
        assert checkpoints.check(folder) is not None, (path.name, bit, f"seed {SEED}")
        flip(path, bit)
    assert checkpoints.check(folder) is None


def test_A6_nothing_is_read_of_a_checkpoint_with_a_flipped_bit(
    stopped: TrainJob, tmp_path: Path, reads: list[str], repeats: Callable[[int, int], int]
) -> None:
    """The whole way from the command: the training is refused, and no file was opened as tensors or as a pickle."""
    if stopped.train.workers > 1:
        pytest.skip("the same way, on rank 0 alone")
    chance = random.Random(SEED)
    for number in range(repeats(3, 20)):
        job = copied_job(stopped, tmp_path / str(number))
        checkpoints = checkpoints_of(job)
        files = files_of(checkpoints.path(checkpoints.steps()[-1]))
        path = files[number % len(files)]
        flip(path, chance.randrange(8 * path.stat().st_size))
        with pytest.raises(CheckpointError, match="none that is whole"):
            train(job, FakeWorker())
        assert reads == [], path.name


def test_A6_the_watch_sees_what_a_whole_checkpoint_is_read_with(
    stopped: TrainJob, tmp_path: Path, reads: list[str]
) -> None:
    if stopped.train.workers > 1:
        pytest.skip("the same way, on each rank")
    train(copied_job(stopped, tmp_path / "job"), FakeWorker())
    assert "load" in reads


def test_A6_control_torch_loads_a_flipped_bit_in_silence(tmp_path: Path) -> None:
    path, weights = tmp_path / "state.pt", torch.randn(1000)
    torch.save({"weights": weights}, path)
    begin = path.read_bytes().index(weights.numpy().tobytes())
    flip(path, 8 * (begin + 2000) + 3)
    assert not torch.equal(torch.load(path, weights_only=True)["weights"], weights)
