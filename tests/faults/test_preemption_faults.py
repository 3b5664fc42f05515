"""Row A10: a machine is about to be taken away (SIGTERM), at any moment of a training."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from components.artifacts import Artifact
from components.artifacts.manifest import file_sha256
from components.train.failures import newest_step
from components.train.job import TrainJob
from components.train.loop import train
from tests.command import SMALL, Home, wait_for
from tests.components.train.jobs import FakeWorker, make_job
from tests.components.train.ranks import (
    Process,
    Work,
    join_ranks,
    read_ledger,
    run_ranks,
    start_ranks,
    train_in_steps,
    train_rank,
    train_till_asked,
)
from tests.faults.conftest import FULL

pytestmark = [pytest.mark.faults, pytest.mark.usefixtures("one_thread"), pytest.mark.timeout(1800)]

GRACE_S = 120.0
"""24 s are what is asked for; how long it took is printed, and a machine may be busy."""
STEPS = 200
TRAIN = {"max_steps": STEPS, "validate_every_steps": 50}


def strike(job: TrainJob, work: Work, folder: Path, seed: int) -> list[int]:
    """Starts the training, sends SIGTERM to one or all of its workers at some moment; gives their exit codes."""
    generator, seen = random.Random(seed), len(read_ledger(job))
    processes = start_ranks(work, job, job.train.workers, folder)
    wait_for_steps(job, seen + 1, processes)
    time.sleep(generator.uniform(0, 0.5))
    struck = processes if generator.random() < 0.5 else [generator.choice(processes)]
    print(f"seed {seed}: SIGTERM to {len(struck)} of {len(processes)} after {len(read_ledger(job))} steps")
    struck_s = time.monotonic()
    for process in struck:
        if process.is_alive():
            os.kill(process.pid or 0, signal.SIGTERM)
    codes = join_ranks(processes, GRACE_S)
    print(f"ended with {codes} after {time.monotonic() - struck_s:.1f} s")
    return codes


def wait_for_steps(job: TrainJob, count: int, processes: list[Process]) -> None:
    deadline_s = time.monotonic() + 120
    while len(read_ledger(job)) < count and all(process.is_alive() for process in processes):
        assert time.monotonic() < deadline_s
        time.sleep(0.005)


@pytest.mark.parametrize("workers", [1, 2])
def test_A10_asked_to_stop_at_random_moments_a_training_loses_no_step(
    workers: int, digits: Artifact, tmp_path: Path, repeats: Callable[[int, int], int]
) -> None:
    values = {**TRAIN, "workers": workers, "zero": {"stage": 2 if workers > 1 else 0}}
    whole = make_job(digits, tmp_path / "whole", **values)
    assert run_ranks(train_rank, whole, workers, tmp_path) == [0] * workers
    expected = train(whole, FakeWorker())
    struck, number = 0, 0
    while struck < repeats(3 if workers == 1 else 1, 25):
        job, number, stopped = make_job(digits, tmp_path / f"job{number}", **values), number + 1, True
        while stopped:
            codes = strike(job, train_till_asked, tmp_path, seed=1000 * workers + struck)
            stopped = 130 in codes
            struck += stopped
            assert codes == [130 if stopped else 0] * workers
            assert newest_step(job.work_folder) == read_ledger(job)[-1]
        assert read_ledger(job) == list(range(1, STEPS + 1))
        result = train(job, FakeWorker())
        assert file_sha256(result.weights) == file_sha256(expected.weights)
        assert result.history == expected.history


def test_A10_control_without_the_guard_steps_are_lost(digits: Artifact, tmp_path: Path) -> None:
    job = make_job(digits, tmp_path / "job", **TRAIN)
    processes = start_ranks(train_in_steps, job, 1, tmp_path)
    wait_for_steps(job, 60, processes)
    os.kill(processes[0].pid or 0, signal.SIGTERM)
    assert join_ranks(processes, GRACE_S) == [-signal.SIGTERM]
    assert newest_step(job.work_folder) < read_ledger(job)[-1]
    assert run_ranks(train_in_steps, job, 1, tmp_path) == [0]
    assert len(read_ledger(job)) > STEPS


@pytest.mark.skipif(not FULL, reason="starts a whole run twice; full counts only")
def test_A10_a_run_that_is_ended_writes_a_checkpoint_and_goes_on_there(home: Home) -> None:
    """Two workers of a Ray group; the command is told."""
    train_section = {**SMALL["train"], "workers": 2, "epochs": 40, "checkpoint_every_epochs": 40}
    arguments = ("run", home.write_spec(train=train_section), "--until", "train", "--json")
    process = home.start(*arguments)
    assert wait_for(lambda: any(event["stage"] == "train" for event in home.events("progress")), process)
    started_s = time.monotonic()
    process.send_signal(signal.SIGTERM)
    stdout, _ = process.communicate(timeout=60)
    print(f"the command ended {time.monotonic() - started_s:.1f} s after its SIGTERM")
    stopped = json.loads(stdout)
    assert (process.returncode, stopped["status"], stopped["error"]["kind"]) == (130, "stopped", "interrupted")
    (work_folder,) = home.path.glob("work/train/*")
    step = newest_step(work_folder)
    assert step > 0 and f"after step {step}, which its checkpoint holds" in stopped["error"]["message"]
    answer = home.run(*arguments)
    assert answer.exit_code == 0, answer.stdout
    model = Path(answer.document()["stages"]["train"]["artifact"]) / "manifest.json"
    assert json.loads(model.read_text())["metadata"]["facts"]["resumed_from_step"] == step
