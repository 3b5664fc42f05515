"""Rows A1 and A2: all ranks killed at random moments of training and saving, also while one of them writes late."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from components.artifacts import Artifact
from components.train.job import TrainJob
from components.train.loop import train
from tests.components.train.jobs import FakeWorker
from tests.components.train.ranks import train_ranks
from tests.faults.checkpoints import newest_whole, outcome, tiny_job
from tests.faults.killed_ranks import Ranks, late_rank, load_by_deepspeed, save_by_deepspeed, steps_of, trained_slowly

pytestmark = [pytest.mark.faults, pytest.mark.usefixtures("one_thread")]

SEED = 4711
INTERVAL = 2
TOTAL = 24
NEVER_S = 3600.0
CONTROL_KILLS = 20
NUMBERS = 50_000_000
SAVE_AGAIN_AND_AGAIN = """
import sys, torch
state = {"weights": torch.zeros(int(sys.argv[2]))}
while True:
    torch.save(state, sys.argv[1])
"""


@pytest.mark.parametrize(("workers", "beside"), [(1, False), (2, True)], ids=["one", "two-background"])
def test_A1_killed_at_random_every_time_it_goes_on(
    workers: int, beside: bool, digits: Artifact, tmp_path: Path, repeats: Callable[[int, int], int]
) -> None:
    kill_and_resume(digits, tmp_path, workers, beside, repeats(10, 250), trained_slowly, 0.4)


def test_A1_control_the_file_of_a_plain_torch_save_is_torn(tmp_path: Path) -> None:
    """The usual loop writes its newest state over the one before: a kill in between leaves neither."""
    path, torn = tmp_path / "last.pt", 0
    for _ in range(CONTROL_KILLS):
        with subprocess.Popen([sys.executable, "-c", SAVE_AGAIN_AND_AGAIN, str(path), str(NUMBERS)]) as saver:
            try:
                for written in (
                    lambda: path.exists() and path.stat().st_size > 4 * NUMBERS,
                    lambda: path.stat().st_size < 2 * NUMBERS,
                ):
                    while not written():
                        assert saver.poll() is None
                        time.sleep(0.001)
            finally:
                saver.kill()
        try:
            torch.load(path, weights_only=True)
        except (RuntimeError, EOFError):
            torn += 1
            break
        path.unlink()
    assert torn


@pytest.mark.parametrize("beside", [False, True], ids=["waiting", "background"])
def test_A2_killed_while_one_rank_writes_late(
    beside: bool, digits: Artifact, tmp_path: Path, repeats: Callable[[int, int], int]
) -> None:
    kill_and_resume(digits, tmp_path, 2, beside, repeats(10, 100), late_rank, 0.6)


def kill_and_resume(
    digits: Artifact, folder: Path, workers: int, beside: bool, kills: int, work: Any, longest_s: float
) -> None:
    """Kills a training again and again; when one has come to its end, the next one begins.

    Args:
        digits: What is learnt.
        folder: For everything.
        workers: Ranks.
        beside: Whether checkpoints are written while training goes on.
        kills: How many.
        work: What a rank does.
        longest_s: A kill comes up to this long after the first step of a life, or after its start.
    """
    chance = random.Random(SEED)
    print(f"seed {SEED}")
    values = {"workers": workers, "zero": {"stage": 2 if workers > 1 else 0}, "epochs": TOTAL // 8}
    values |= {"global_batch_size": 30, "checkpoint_every_steps": INTERVAL, "checkpoint_in_background": beside}
    # Of two that follow each other, the first is there before the second is begun.
    most = 2 * INTERVAL if beside else INTERVAL
    control = tiny_job(digits, folder / "control", **values)
    train_ranks(control, workers, folder)
    expected = outcome(train(control, FakeWorker()))
    done, ended = 0, 0
    while done < kills or not ended:
        job = tiny_job(digits, folder / f"job-{ended}", **values)
        ranks = Ranks(partial(work, chance.random() if done < kills else 0.0), job, workers, folder)
        # Most in training and saving, some while they start; when enough were killed one may end.
        ready = partial(has_grown, job, len(steps_of(job))) if chance.random() < 0.8 else partial(bool, True)
        moment_s = chance.uniform(0.0, longest_s) if done < kills else NEVER_S
        if ranks.end_after(ready, moment_s):
            done += 1
            newest_whole(job)  # fails if one had to be set aside
            continue
        ended += 1
        assert outcome(train(job, FakeWorker())) == expected
        assert max(lost_steps(steps_of(job)), default=0) <= most, steps_of(job)
    print(f"{done} kills, {ended} trainings came to their end")


def has_grown(job: TrainJob, lines: int) -> bool:
    return len(steps_of(job)) > lines


def lost_steps(steps: list[tuple[int, int]]) -> list[int]:
    """How many steps each kill cost, from the lives and steps in the order in which they were taken."""
    return [last - (first - 1) for (life, last), (next_life, first) in pairwise(steps) if life != next_life]


def test_A2_control_deepspeeds_own_checkpoints_do_not_survive_it(digits: Artifact, tmp_path: Path) -> None:
    """Its `latest` names a checkpoint that one rank has not yet written: that rank cannot load it."""
    chance, bad = random.Random(SEED), 0
    for number in range(CONTROL_KILLS):
        job = tiny_job(digits, tmp_path / f"job-{number}", workers=2, zero={"stage": 2}, global_batch_size=30)
        job.work_folder.mkdir()
        latest = job.work_folder / "latest"
        assert Ranks(save_by_deepspeed, job, 2, tmp_path).end_after(latest.exists, chance.uniform(0.0, 1.0))
        bad += Ranks(load_by_deepspeed, job, 2, tmp_path).wait() != [0, 0]
        if bad:
            break
    assert bad >= 1
