"""Faults of a sweep: kills at every record, damaged records, poisoned trials. Rows B1 to B4 of the fault matrix.

The sweeps run here with a training that costs nothing, so that every boundary can be tried; their decisions, records
and checkpoints are the real ones. A kill is an exception that nothing of ours may catch, or SIGKILL to a process.
"""

from __future__ import annotations

import json
import math
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from components.errors import StageError
from components.tune.journal import Journal
from components.tune.runners import run_here
from components.tune.stage import describe
from components.tune.sweep import Sweep
from tests.components.tune.fakes import fake_inherit, fake_metrics, fake_train, make_plan, make_settings

pytestmark = pytest.mark.faults

ROOT = Path(__file__).resolve().parents[2]
SEARCHES = {
    "random": {"search": "random"},
    "bayesian": {"search": "bayesian"},
    "random-asha": {"search": "random", "scheduler": "asha"},
    "bayesian-asha": {"search": "bayesian", "scheduler": "asha"},
    "random-hyperband": {"search": "random", "scheduler": "hyperband", "asha": {"grace_epochs": 1}},
    "random-median": {"search": "random", "scheduler": "median", "median": {"min_trials": 2}},
    "repeats": {"search": "random", "repeats": 2, "finalists": 2},
    "population": {"search": "random", "scheduler": "pbt"},
    "several-aims": {"search": "bayesian", "metric": ["accuracy", "loss"]},
    "grid": {
        "search": "grid",
        "trials": None,
        "space": {"train.learning_rate": {"grid": [1e-4, 1e-3, 1e-2]}, "train.global_batch_size": {"grid": [32, 64]}},
    },
}


class Killed(BaseException):
    """Stands for SIGKILL: no handler of ours may see it."""


class MortalJournal(Journal):
    """Dies right after, or right before, its n-th new record is on the disk."""

    def __init__(self, path: Path, lives: float, before: bool = False) -> None:
        self.lives, self.before = math.inf, before
        super().__init__(path, "owner")
        self.lives = lives

    def append(self, kind, **values):
        self.lives -= 1
        if self.before and self.lives <= 0:
            raise Killed
        record = super().append(kind, **values)
        if self.lives <= 0:
            raise Killed
        return record


def run_until_killed(folder: Path, lives: float, before: bool = False, **tune) -> Sweep | None:
    """One start of the sweep; None when it was killed."""
    try:
        settings = make_settings(folder, epochs=5)
        journal = MortalJournal(folder / "trials.jsonl", lives, before)
        sweep = Sweep(make_plan(epochs=5, **tune), journal, inherit=partial(fake_inherit, settings))
        run_here(sweep, settings, fake_train)
    except Killed:
        return None
    return sweep


def outcome(sweep: Sweep) -> str:
    """All that enters the artifact."""
    return json.dumps([describe(trial, sweep) for trial in sweep.in_order()], sort_keys=True)


def decisions(sweep: Sweep) -> list[dict]:
    """The journal without its times and pace."""
    return [{k: v for k, v in record.items() if k not in ("time", "pace")} for record in sweep.journal.read()]


@pytest.mark.parametrize("name", SEARCHES)
@pytest.mark.parametrize("before", [False, True], ids=["after", "before"])
def test_B3_killed_at_every_record_ends_as_the_undisturbed_sweep(tmp_path, name, before):
    (tmp_path / "control").mkdir(), (tmp_path / "killed").mkdir()
    control = run_until_killed(tmp_path / "control", math.inf, **SEARCHES[name])
    starts, sweep = 0, None
    while sweep is None:
        # One new record a start: the kill falls behind (or before) each suggestion, report and end.
        sweep = run_until_killed(tmp_path / "killed", 2 if before else 1, before, **SEARCHES[name])
        starts += 1
    assert starts > 12
    assert decisions(sweep) == decisions(control)
    assert outcome(sweep) == outcome(control)


@pytest.mark.parametrize("name", ["grid", "random"])
@pytest.mark.parametrize("seed", range(5))
def test_B3_without_scheduler_concurrency_and_kills_change_nothing(tmp_path, name, seed):
    (tmp_path / "control").mkdir(), (tmp_path / "wide").mkdir()
    control = run_until_killed(tmp_path / "control", math.inf, **SEARCHES[name])
    generator, sweep = random.Random(seed), None
    while sweep is None:
        sweep = run_side_by_side(tmp_path / "wide", generator, **SEARCHES[name])
    assert outcome(sweep) == outcome(control)


def run_side_by_side(folder: Path, generator: random.Random, **tune) -> Sweep | None:
    """Two trials at once, their reports in random order; killed after a random number of records."""
    settings = make_settings(folder, epochs=5)
    try:
        journal = MortalJournal(folder / "trials.jsonl", generator.randint(1, 20))
        sweep = Sweep(make_plan(epochs=5, **tune), journal)
        live = {}
        while sweep.ended < sweep.total:
            while len(live) < 2 and (trial := sweep.next_trial()):
                live[trial.number] = settings.job(trial.number, trial.config)
            number = generator.choice(sorted(live))
            epoch = len(sweep.trials[number].reports) + 1
            if epoch > 5:
                sweep.finish(number), live.pop(number)
            else:
                sweep.report(number, epoch, fake_metrics(live[number], epoch))
    except Killed:
        return None
    return sweep


SCRIPT = """
import sys, time
from pathlib import Path
from components.tune.journal import Journal
from components.tune.runners import run_here
from components.tune.sweep import Sweep
from tests.components.tune.fakes import fake_train, make_plan, make_settings

folder = Path(sys.argv[1])
plan = make_plan(epochs=5)
run_here(Sweep(plan, Journal(folder / "trials.jsonl", "owner")), make_settings(folder, epochs=5), fake_train)
"""


def start_process(folder: Path) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", SCRIPT, str(folder)], cwd=ROOT, stderr=subprocess.PIPE)


def test_B1_sigkill_at_random_moments_loses_no_trial_and_repeats_none(tmp_path, repeats):
    (tmp_path / "control").mkdir()
    control = run_until_killed(tmp_path / "control", math.inf)
    wanted, generator, kills = repeats(10, 200), random.Random(7), 0
    while kills < wanted:
        folder = tmp_path / f"killed-{kills}"
        folder.mkdir()
        done = kill_at_random_moments(folder, generator, most=min(4, wanted - kills))
        sweep = run_until_killed(folder, math.inf)
        assert outcome(sweep) == outcome(control)
        epochs = (folder / "ledger.txt").read_text().split("\n")
        assert len(epochs) - len(set(epochs)) <= done  # at most the epoch that a kill fell into is trained again
        shutil.rmtree(folder)
        kills += done


def kill_at_random_moments(folder: Path, generator: random.Random, most: int) -> int:
    """Starts a sweep and kills it, up to `most` times; returns how often it was killed before it had ended."""
    for kills in range(most):
        process = start_process(folder)
        wait_for_growth(folder / "trials.jsonl", process)
        time.sleep(generator.uniform(0, 0.03))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        if process.returncode == 0:
            return kills
    return most


def wait_for_growth(path: Path, process: subprocess.Popen) -> None:
    """Until the process has written a record of its own, or has ended."""
    size = path.stat().st_size if path.exists() else 0
    while process.poll() is None and (not path.exists() or path.stat().st_size == size):
        time.sleep(0.002)


def recorded(folder: Path) -> tuple[Path, str]:
    sweep = run_until_killed(folder, math.inf, scheduler="asha")
    return sweep.journal.path, outcome(sweep)


def test_B2_a_journal_cut_anywhere_ends_as_the_undisturbed_sweep(tmp_path):
    path, expected = recorded(tmp_path)
    content = path.read_bytes()
    generator = random.Random(3)
    for length in [0, *sorted(generator.sample(range(1, len(content)), 20))]:
        path.write_bytes(content[:length])
        assert outcome(run_until_killed(tmp_path, math.inf, scheduler="asha")) == expected


def test_B2_a_flipped_bit_anywhere_is_refused_with_its_line(tmp_path):
    path, _ = recorded(tmp_path)
    content, whole = path.read_bytes(), Journal(path, "owner").read()
    generator, refused = random.Random(4), 0
    for place in generator.sample(range(len(content) - 1), 60):
        damaged = bytearray(content)
        damaged[place] ^= 1 << generator.randrange(7)
        path.write_bytes(bytes(damaged))
        try:
            assert Journal(path, "owner").read() == whole  # 1E-05 is 1e-05
        except StageError as error:
            assert re.search(r"damaged in line \d+|another sweep", error.message)
            refused += 1
    assert refused > 50


def poisoned(kind: str):
    """A training whose trial 1 breaks in one way."""

    def train(job, worker):
        if job.work_folder.name != "001":
            return fake_train(job, worker)
        if kind == "raise":
            raise ValueError("poison")
        if kind == "exit":
            sys.exit(3)
        if kind == "memory":
            raise MemoryError
        worker.report(1, {"accuracy": math.nan})
        raise AssertionError("a trial with a NaN must not go on")

    return train


@pytest.mark.parametrize(
    ("kind", "reason"),
    [("raise", "ValueError: poison"), ("exit", "SystemExit: 3"), ("memory", "MemoryError"), ("nan", "accuracy is nan")],
)
def test_B4_a_poisoned_trial_is_named_and_leaves_the_others_as_they_are(tmp_path, kind, reason):
    (tmp_path / "control").mkdir(), (tmp_path / "poisoned").mkdir()
    control = run_until_killed(tmp_path / "control", math.inf, search="random")
    sweep = Sweep(make_plan(epochs=5, search="random"), Journal(tmp_path / "poisoned" / "trials.jsonl", "owner"))
    run_here(sweep, make_settings(tmp_path / "poisoned", epochs=5), poisoned(kind))
    assert reason in sweep.trials[1].reason
    del sweep.trials[1], control.trials[1]
    assert outcome(sweep) == outcome(control)
