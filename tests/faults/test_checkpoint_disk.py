"""Rows A8 and A9: the disk is full, read-only, broken, over its quota, or its folder is gone."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from components.artifacts import Artifact
from components.errors import DiskFullError, StageError
from components.train import disk
from components.train.job import TrainJob
from components.train.loop import train
from tests.components.train.jobs import FakeWorker
from tests.components.train.ranks import train_ranks
from tests.faults.checkpoints import checkpoints_of, newest_whole, outcome, tiny_job
from tests.faults.conftest import FULL
from tests.faults.file_operations import Recorder
from tests.faults.killed_ranks import Ranks, save_alone_fails, writes_fail_on_rank_1

pytestmark = [pytest.mark.faults, pytest.mark.usefixtures("one_thread")]

DISK_BYTES = 32 << 20
FREED_AFTER_S = 10.0 if FULL else 0.3
FACTORS = [0.1 + 2.0 * number / 19 for number in range(20)] if FULL else [0.1, 0.5, 0.9, 2.1]
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounting a disk of a given size needs root")


@contextmanager
def mounted(folder: Path, size_bytes: int) -> Iterator[Path]:
    """A disk of its own."""
    folder.mkdir()
    try:
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size_bytes}", "none", folder], check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("this machine lets nobody mount a disk")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    with mounted(tmp_path / "disk", DISK_BYTES) as folder:
        yield folder


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looks for space more often than once a second."""
    monkeypatch.setattr(disk, "POLL_INTERVAL_S", 0.02)
    monkeypatch.setattr(disk, "RETRY_INTERVAL_S", 0.1)


@pytest.fixture(scope="module")
def expected(one_thread: None, digits: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """How `larger_job` ends undisturbed."""
    return outcome(train(larger_job(digits, tmp_path_factory.mktemp("control") / "work"), FakeWorker()))


def larger_job(digits: Artifact, folder: Path) -> TrainJob:
    """Its checkpoints take about 2 MB, many pages of a disk."""
    values = {"epochs": 4, "global_batch_size": 120, "keep_checkpoints": 1}
    job = tiny_job(digits, folder, **values)
    return TrainJob(**{**vars(job), "model": job.model.model_copy(update={"hidden_sizes": (2000,)})})


@dataclass
class Neighbour(FakeWorker):
    """Fills the disk when the first round is reported, and frees it some time after the user was told.

    Attributes:
        job: What is trained.
        factor: Free space that is left, in checkpoints.
        told: Warnings about the full disk, with the steps of the whole checkpoints at that time.
    """

    job: TrainJob | None = None
    factor: float = 1.0
    told: list[tuple[str, list[int]]] = field(default_factory=list)

    @property
    def ballast(self) -> Path:
        assert self.job is not None
        return self.job.work_folder / "ballast"

    def report(self, epoch: int, metrics: Mapping[str, float]) -> None:
        super().report(epoch, metrics)
        if epoch == 1 and self.job is not None:
            size_bytes = checkpoints_of(self.job).newest_bytes()
            free = shutil.disk_usage(self.job.work_folder).free
            with self.ballast.open("wb") as handle:
                handle.write(bytes(int(free - self.factor * size_bytes)))

    def warn(self, text: str) -> None:
        super().warn(text)
        if "is full" in text and "waits for space, up to" in text and self.job is not None:
            checkpoints = checkpoints_of(self.job)
            whole = [step for step in checkpoints.steps() if checkpoints.check(checkpoints.path(step)) is None]
            assert whole == checkpoints.steps()  # nothing torn is to be seen
            self.told.append((text, whole))
            threading.Timer(FREED_AFTER_S, self.ballast.unlink).start()


@needs_root
@pytest.mark.parametrize("factor", FACTORS)
def test_A8_training_waits_for_space_and_goes_on(
    factor: float, digits: Artifact, expected: Any, small_disk: Path, quick: None
) -> None:
    job = larger_job(digits, small_disk / "work")
    worker = Neighbour(job=job, factor=factor)
    result = train(job, worker)
    assert outcome(result) == expected
    assert [step for step, _ in worker.reports] == [1, 2, 3, 4]  # in one go
    if factor < 1:
        assert worker.told, worker.warnings
    for text, whole in worker.told:
        assert whole, "the checkpoint before must stay"
        assert str(job.work_folder) in text and " MB" in text
    assert not list(checkpoints_of(job).folder.glob(".*.partial"))


def failing(times: int, number: int = errno.ENOSPC, part: str = "checkpoints/.step-") -> Callable[[str, Path], None]:
    """What a disk answers to writes below a part of the folder, that many times."""
    left = [times]

    def answer(kind: str, path: Path) -> None:
        if left[0] and kind in ("write", "create", "mkdir", "fsync") and part in path.as_posix():
            left[0] -= 1
            raise OSError(number, os.strerror(number), str(path))

    return answer


@pytest.mark.parametrize("part", ["checkpoints/.step-", "weights/", "result.json"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT], ids=["full", "quota"])
def test_A8_waits_wherever_it_writes(part: str, number: int, digits: Artifact, tmp_path: Path, quick: None) -> None:
    """Without a disk of its own: the system's answer is put in."""
    control, job = (tiny_job(digits, tmp_path / name) for name in ("control", "work"))
    job.work_folder.mkdir()
    worker = FakeWorker()
    with Recorder(job.work_folder, errors=failing(3, number, part)):
        result = train(job, worker)
    assert outcome(result) == outcome(train(control, FakeWorker()))
    words = "quota is used up" if number == errno.EDQUOT else "disk is full"
    assert [words in text for text in worker.warnings] == [True, False], worker.warnings
    assert "training goes on" in worker.warnings[1]
    assert not list(job.work_folder.rglob(".*.partial"))


def test_A8_gives_up_after_its_limit_and_the_same_command_goes_on(
    digits: Artifact, tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk, "WAIT_LIMIT_S", 0.3)
    control, job = (tiny_job(digits, tmp_path / name) for name in ("control", "work"))
    job.work_folder.mkdir()
    part = "checkpoints/.step-00000004"
    with (
        Recorder(job.work_folder, errors=failing(1 << 30, part=part)),
        pytest.raises(DiskFullError, match=r"checkpoint of step 4 takes about .* MB.*run the same command again"),
    ):
        train(job, FakeWorker())
    assert newest_whole(job) == 2
    result = train(job, FakeWorker())
    assert result.facts["resumed_from_step"] == 2
    assert outcome(result) == outcome(train(control, FakeWorker()))


def test_A8_little_space_is_told_before_the_first_step(
    digits: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, worker = tiny_job(digits, tmp_path / "work"), FakeWorker()
    monkeypatch.setattr(disk, "free_bytes", lambda folder: 9_000)
    train(job, worker)
    assert len(worker.warnings) == 1 and "less than 2.2 checkpoints" in worker.warnings[0]
    size_bytes = checkpoints_of(job).newest_bytes()
    monkeypatch.setattr(disk, "free_bytes", lambda folder: int(2.3 * size_bytes))
    assert disk.tight_disk(tmp_path, size_bytes) is None


def test_A8_two_ranks_wait_together(digits: Artifact, tmp_path: Path) -> None:
    """The disk of rank 1 alone is full for its first two tries."""
    values = {"workers": 2, "zero": {"stage": 2}}
    control, job = (tiny_job(digits, tmp_path / name, **values) for name in ("control", "work"))
    train_ranks(control, 2, tmp_path)
    assert Ranks(writes_fail_on_rank_1(errno.ENOSPC, 2), job, 2, tmp_path).wait() == [0, 0]
    assert outcome(train(job, FakeWorker())) == outcome(train(control, FakeWorker()))


def test_A8_control_torch_save_destroys_what_was_there(tmp_path: Path) -> None:
    """Saved over the one before on a disk with too little room (here: a limit on the size of a file)."""
    path = tmp_path / "newest.pt"
    torch.save({"weights": torch.zeros(1000)}, path)
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, limits[1]))
    try:
        with pytest.raises(RuntimeError):
            torch.save({"weights": torch.ones(1000)}, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    with pytest.raises(Exception):  # noqa: B017  (in whatever way it is torn)
        torch.load(path, weights_only=True)


BROKEN = {"read-only": errno.EROFS, "input/output error": errno.EIO, "stale handle": errno.ESTALE}


@pytest.mark.parametrize("part", ["checkpoints/.step-00000004", "weights/", "checkpoints/.latest"])
@pytest.mark.parametrize("number", BROKEN.values(), ids=BROKEN)
def test_A9_a_broken_disk_stops_training_within_one_save(
    number: int, part: str, digits: Artifact, tmp_path: Path
) -> None:
    control, job = (tiny_job(digits, tmp_path / name) for name in ("control", "work"))
    job.work_folder.mkdir()
    worker = FakeWorker()
    with (
        Recorder(job.work_folder, errors=failing(1 << 30, number, part)),
        pytest.raises(StageError, match=os.strerror(number)) as caught,
    ):
        train(job, worker)
    assert str(job.work_folder) in caught.value.message and "run the same command" in caught.value.message
    assert len(worker.reports) <= 1
    assert outcome(train(job, FakeWorker())) == outcome(train(control, FakeWorker()))


@needs_root
def test_A9_a_disk_that_turns_read_only_under_foot(digits: Artifact, expected: Any, small_disk: Path) -> None:
    job = larger_job(digits, small_disk / "work")
    with pytest.raises(StageError, match="Read-only file system"):
        train(job, Breaker(2, lambda: remount(small_disk, "ro")))
    remount(small_disk, "rw")
    result = train(job, FakeWorker())
    assert result.facts["resumed_from_step"] == 4
    assert outcome(result) == expected


def test_A9_the_folder_is_deleted_under_foot(digits: Artifact, tmp_path: Path) -> None:
    control, job = (tiny_job(digits, tmp_path / name) for name in ("control", "work"))
    checkpoints = job.work_folder / "checkpoints"
    with pytest.raises(StageError, match=f"No such file or directory: {checkpoints}"):
        train(job, Breaker(1, lambda: shutil.rmtree(checkpoints)))
    assert outcome(train(job, FakeWorker())) == outcome(train(control, FakeWorker()))


@dataclass
class Breaker(FakeWorker):
    """Breaks something when a round is reported."""

    def __init__(self, epoch: int, act: Callable[[], object]) -> None:
        super().__init__()
        self.epoch, self.act = epoch, act

    def report(self, epoch: int, metrics: Mapping[str, float]) -> None:
        super().report(epoch, metrics)
        if epoch == self.epoch:
            self.act()


def remount(folder: Path, mode: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{mode}", folder], check=True)


def test_A9_what_fails_on_one_rank_stops_both(digits: Artifact, tmp_path: Path) -> None:
    values = {"workers": 2, "zero": {"stage": 2}}
    control, job = (tiny_job(digits, tmp_path / name, **values) for name in ("control", "work"))
    train_ranks(control, 2, tmp_path)
    ranks = Ranks(writes_fail_on_rank_1(errno.EIO, 1 << 30), job, 2, tmp_path)
    codes = ranks.wait()
    assert codes == [0, 0], codes  # each rank saw the StageError that names rank 1
    said = [(job.work_folder / f"said.{rank}").read_text() for rank in (0, 1)]
    assert said[0] == said[1] and said[0].startswith("Worker 1 could not write the checkpoint of step 2 (Input/output")
    train_ranks(job, 2, tmp_path)
    assert outcome(train(job, FakeWorker())) == outcome(train(control, FakeWorker()))


def test_A9_control_deepspeed_leaves_the_other_rank_waiting(digits: Artifact, tmp_path: Path) -> None:
    """Rank 1 cannot write and says so; rank 0 is not told, and stands at a barrier for as long as rank 1 lives."""
    job = tiny_job(digits, tmp_path / "work", workers=2)
    job.work_folder.mkdir()
    ranks = Ranks(save_alone_fails, job, 2, tmp_path)
    failed = job.work_folder / "failed.1"
    assert ranks.end_after(failed.exists, 1.0)
    assert not (job.work_folder / "failed.0").exists() and not (job.work_folder / "saved.0").exists()
