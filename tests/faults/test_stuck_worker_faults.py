"""Rows A11 and A12: workers that stop answering and come back late, and workers that die, each in every way."""

from __future__ import annotations

import ctypes
import hashlib
import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from components.artifacts import Artifact
from components.artifacts.manifest import file_sha256
from components.context import Context, read_lines
from components.train.checkpoint import CheckpointFolder
from components.train.failures import RESTARTS_NAME, count_preemptions, count_restarts, newest_step
from components.train.job import TrainJob, TrainResult
from components.train.launch import launch
from components.train.loop import train
from components.train.result import job_digest
from pipelines.processes import start_time
from tests.builders import make_context
from tests.components.train.jobs import FakeWorker, PairWorker, make_job
from tests.components.train.ranks import (
    Process,
    join_ranks,
    read_ledger,
    run_ranks,
    start_ranks,
    train_in_steps,
    train_rank,
    train_ranks,
)
from tests.faults.conftest import FULL
from tests.faults.ray_workers import strike_workers

pytestmark = [pytest.mark.faults, pytest.mark.usefixtures("one_thread"), pytest.mark.timeout(1200)]

PAIR = {"workers": 2, "zero": {"stage": 2}, "max_steps": 150, "validate_every_steps": 50}
PLAIN = {"architecture": "mlp", "hidden_sizes": [16], "dropout": 0.0}
DEADLINE_S = 180.0


@pytest.fixture(scope="module")
def undisturbed(digits: Artifact, tmp_path_factory: pytest.TempPathFactory) -> TrainResult:
    folder = tmp_path_factory.mktemp("whole")
    job = make_job(digits, folder / "job", **PAIR)
    train_ranks(job, 2, folder)
    return train(job, FakeWorker())


def wait_until(holds: Callable[[], bool], timeout_s: float = 120.0) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline_s, "what was waited for did not happen"
        time.sleep(0.005)


def state_of(process: Process) -> str:
    """T: stopped."""
    return Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0]


def send(process: Process, number: signal.Signals) -> None:
    os.kill(process.pid or 0, number)


@pytest.mark.parametrize("rank", [0, 1])
def test_A11_a_worker_that_is_stopped_for_five_seconds_changes_nothing(
    rank: int, undisturbed: TrainResult, digits: Artifact, tmp_path: Path
) -> None:
    job = make_job(digits, tmp_path / "job", **PAIR)
    processes = start_ranks(train_in_steps, job, 2, tmp_path)
    wait_until(lambda: len(read_ledger(job)) > 20)
    send(processes[rank], signal.SIGSTOP)
    time.sleep(5 if FULL else 2)
    send(processes[rank], signal.SIGCONT)
    assert join_ranks(processes, DEADLINE_S) == [0, 0]
    assert read_ledger(job) == list(range(1, 151))
    assert train(job, FakeWorker()).weights.read_bytes() == undisturbed.weights.read_bytes()


PLACES = {
    "before a checkpoint": ("components.train.checkpoint", "CheckpointFolder.begin"),
    "before its commit": ("components.train.checkpoint", "CheckpointFolder.commit"),
    "in its commit": ("components.train.checkpoint", "replace_folder"),
    "at the best weights": ("components.train.loop", "sync_path"),
    "before the result": ("components.train.loop", "count_restarts"),
}


def train_and_stop(place: str, fenced: bool, job: TrainJob, worker: PairWorker) -> None:
    """Trains; the process stops itself (SIGSTOP) at `place`, once, and goes on when it is let."""
    import importlib

    module, name = PLACES[place]
    owner, _, attribute = name.rpartition(".")
    target = getattr(importlib.import_module(module), owner) if owner else importlib.import_module(module)
    real, stopped = getattr(target, attribute), []

    def stop_first(*arguments: object) -> object:
        if not stopped:
            stopped.append(True)
            # Sent to the whole process by a thread, it stops another one first, and this one may still write.
            signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)
        return real(*arguments)

    setattr(target, attribute, stop_first)
    train_fenced(fenced, job, worker)


def train_fenced(fenced: bool, job: TrainJob, worker: PairWorker) -> None:
    if not fenced:
        CheckpointFolder.take_over = lambda self: ""  # type: ignore[method-assign]
    train(job, worker)


def files_of(folder: Path) -> dict[str, tuple[str, int]]:
    """Digest and time of each file."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path): (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns) for path in files}


def let_a_late_writer_go_on(job: TrainJob, place: str, folder: Path, fenced: bool = True) -> tuple[int, bool]:
    """Its exit code when another process has trained to the end meanwhile, and whether all files are as they were."""
    (late,) = start_ranks(partial(train_and_stop, place, fenced), job, 1, folder)
    wait_until(lambda: state_of(late) == "T")
    try:
        assert run_ranks(partial(train_fenced, fenced), job, 1, folder) == [0]
        before = files_of(job.work_folder)
    finally:
        send(late, signal.SIGCONT)
    return join_ranks([late], DEADLINE_S)[0], files_of(job.work_folder) == before


@pytest.mark.parametrize("place", PLACES)
def test_A11_a_late_writer_is_fenced(place: str, digits: Artifact, tmp_path: Path) -> None:
    whole = make_job(digits, tmp_path / "whole")
    expected = train(whole, FakeWorker())
    job = make_job(digits, tmp_path / "job")
    exit_code, untouched = let_a_late_writer_go_on(job, place, tmp_path)
    assert exit_code != 0 and untouched
    checkpoints = CheckpointFolder(job.work_folder / "checkpoints", job.key_file, job_digest(job), 1, keep=2)
    assert [checkpoints.check(checkpoints.path(step)) for step in checkpoints.steps()] == [None, None]
    assert train(job, FakeWorker()).weights.read_bytes() == expected.weights.read_bytes()


def test_A11_control_without_the_fence_the_late_writer_writes_over_its_successor(
    digits: Artifact, tmp_path: Path
) -> None:
    job = make_job(digits, tmp_path / "job", epochs=1)
    exit_code, untouched = let_a_late_writer_go_on(job, "before a checkpoint", tmp_path, fenced=False)
    assert exit_code == 0 and not untouched


@pytest.mark.skipif(not FULL, reason="a group of Ray waits for a minute; full counts only")
def test_A11_a_group_with_a_stopped_worker_is_started_again(ray_session: str, digits: Artifact, tmp_path: Path) -> None:
    """One is stopped for good; after the restart another one is asked to stop, which is no failure (row A10)."""
    values = {"workers": 2, "zero": {"stage": 2}, "max_steps": 600, "validate_every_steps": 50, "max_restarts": 1}
    whole, struck = (make_job(digits, tmp_path / name, PLAIN, **values) for name in ("whole", "struck"))
    train_ranks(whole, 2, tmp_path)
    strikes = strike_workers(struck.work_folder, (signal.SIGSTOP, signal.SIGTERM))
    result, expected = launch(struck, make_context(tmp_path, "train", debug=False)), train(whole, FakeWorker())
    stopped = strikes[0]
    print(f"training stood still for {stopped.pause_s():.1f} s")
    assert stopped.pause_s() <= 75
    if start_time(stopped.pid) is not None:
        os.kill(stopped.pid, signal.SIGCONT)
        wait_until(lambda: start_time(stopped.pid) is None)
    assert (count_restarts(struck.work_folder), count_preemptions(struck.work_folder)) == (2, 1)
    assert file_sha256(result.weights) == file_sha256(expected.weights)
    assert result.history == expected.history


@dataclass(frozen=True)
class HoldingContext(Context):
    """Holds Python's lock for 70 s in the worker that first tells its progress after a checkpoint."""

    def event(self, kind: str, *arguments: Any, **more: Any) -> None:
        super().event(kind, *arguments, **more)
        marker = self.run_folder / "held"
        if kind == "progress" and newest_step(self.work_folder) and not marker.exists():
            marker.write_text(str(time.time()))
            ctypes.PyDLL(None).sleep(70)


@pytest.mark.skipif(not FULL, reason="a worker holds its lock for more than a minute; full counts only")
def test_A12_a_worker_that_holds_its_lock_is_replaced(ray_session: str, digits: Artifact, tmp_path: Path) -> None:
    context = HoldingContext(**vars(make_context(tmp_path, "train", debug=False)))
    values = {"workers": 2, "zero": {"stage": 2}, "max_steps": 3000, "validate_every_steps": 50}
    whole = make_job(digits, tmp_path / "whole", PLAIN, **values)
    held = replace(make_job(digits, context.work_folder, PLAIN, **values), key_file=tmp_path / "key")
    train_ranks(whole, 2, tmp_path)
    result, expected = launch(held, context), train(whole, FakeWorker())
    (restart,) = read_lines(held.work_folder / RESTARTS_NAME)
    assert restart["time"] - float((context.run_folder / "held").read_text()) <= 75
    assert file_sha256(result.weights) == file_sha256(expected.weights)


DEATHS = ("SIGKILL", "SIGSEGV", "exit")


def train_and_end(how: str, job: TrainJob, worker: PairWorker) -> None:
    """Trains; rank 1 dies at the end of step 70."""
    from components.train import loop

    real = loop.train_step

    def step(session: object) -> object:
        if worker.rank == 1 and session.progress.step == 70:  # type: ignore[attr-defined]
            if how == "exit":
                os._exit(9)
            os.kill(os.getpid(), signal.Signals[how])
        return real(session)  # type: ignore[arg-type]

    loop.train_step = step  # type: ignore[assignment]
    train_in_steps(job, worker)


@pytest.mark.parametrize("how", DEATHS)
def test_A12_when_one_worker_dies_the_others_end_and_the_next_start_changes_nothing(
    how: str, undisturbed: TrainResult, digits: Artifact, tmp_path: Path
) -> None:
    job = make_job(digits, tmp_path / "job", **PAIR)
    processes = start_ranks(partial(train_and_end, how), job, 2, tmp_path)
    wait_until(lambda: not processes[1].is_alive())
    died_s = time.monotonic()
    codes = join_ranks(processes, DEADLINE_S)
    print(f"the other worker ended {time.monotonic() - died_s:.1f} s later")
    assert all(codes)
    assert newest_step(job.work_folder) == 50
    assert run_ranks(train_rank, job, 2, tmp_path) == [0, 0]
    result = train(job, FakeWorker())
    assert result.weights.read_bytes() == undisturbed.weights.read_bytes()
    assert result.history == undisturbed.history
