"""Row B1 on the real command: its sweep is killed in the command, in a trial's process, and in the head of its Ray.

Random search without a scheduler: the table of trials must come out as that of an undisturbed sweep. All sweeps share a
home, so that the data is made once and a Ray that was not killed is found again.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from components.context import read_lines
from components.tune.history import read_sweep
from pipelines.processes import session_members
from pipelines.ray_cluster import read_record
from tests.command import SMALL, Home, new_home, wait_for
from tests.faults.conftest import FULL

pytestmark = [pytest.mark.faults, pytest.mark.timeout(1800)]

SPACE = {"train.learning_rate": {"log_uniform": [1e-4, 1e-2]}}
TUNE = {"search": "random", "trials": 6, "retries": 9, "space": SPACE}
SPEC = {**SMALL, "train": {**SMALL["train"], "epochs": 8}, "deploy": False, "tune": TUNE}
ARGUMENTS = ("--until", "tune", "--offline")
TARGETS = ("command", "trial", "head")
KILLS_EACH = 3
MOST_OWN_ENDS = 2
# Parts of nine kills, so that full counts that were stopped go on behind the last part; 21 of each in full.
PARTS = range(7 if FULL else 1)


def journal(home: Home) -> Path | None:
    return next(iter(home.path.glob("work/tune/*/trials.jsonl")), None)


def reports(home: Home) -> list[dict[str, Any]]:
    path = journal(home)
    return [record for record in read_lines(path) if record["kind"] == "report"] if path else []


def table(home: Home) -> list[tuple[Any, ...]]:
    """What every trial tried and came to."""
    path = journal(home)
    assert path is not None
    return [(trial.config, trial.state, trial.reports) for trial in read_sweep(path).state.in_order()]


def is_whole(home: Home) -> bool:
    path = journal(home)
    return path is not None and read_sweep(path).complete


@pytest.fixture(scope="module")
def swept() -> Iterator[tuple[Home, list[tuple[Any, ...]]]]:
    """A home with an undisturbed sweep, and its table."""
    with new_home("pc-") as home:
        answer = home.run("run", home.write_spec(SPEC), *ARGUMENTS)
        assert answer.exit_code == 0, answer.stderr
        yield home, table(home)


def forget_sweep(home: Home) -> None:
    """Leaves only the data, which the next sweep takes from the cache."""
    for folder in ("runs", "work/tune", "artifacts/tune"):
        shutil.rmtree(home.path / folder)


def ray_processes(home: Home, *names: str) -> list[int]:
    """Pids in the session of the local Ray, by what their command line contains."""
    record, found = read_record(home.path), []
    for pid in sorted(session_members(record.leader)) if record else []:
        try:
            arguments = psutil.Process(pid).cmdline()
        except psutil.NoSuchProcess:
            continue
        # One that has just ended has no command line any more.
        if arguments and any(name in arguments[0] for name in names):
            found.append(pid)
    return found


def kill(home: Home, command: subprocess.Popen[str], target: str) -> bool:
    """One SIGKILL; False if its target was not there any more."""
    pids = {
        "command": lambda: [command.pid],
        "trial": lambda: ray_processes(home, "ImplicitFunc")[:1],
        "head": lambda: ray_processes(home, "gcs_server"),
    }[target]()
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            return False
    return bool(pids)


@pytest.mark.parametrize("part", PARTS)
def test_B1_after_any_kills_the_same_command_ends_with_the_same_table(
    swept: tuple[Home, list[tuple[Any, ...]]], repeats: Callable, part: int
) -> None:
    home, expected = swept
    generator, left = random.Random(part), repeats(KILLS_EACH, KILLS_EACH) * [*TARGETS]
    generator.shuffle(left)
    print(f"seed {part}: {', '.join(left)}")
    forget_sweep(home)
    command, ended = None, 0
    while left:
        if command is None and is_whole(home):
            check_sweep(home, expected)
            forget_sweep(home)
        command = command or home.start("run", home.path.parent / "small.yaml", *ARGUMENTS)
        if not reached(home, command, len(reports(home)) + generator.randint(1, 3), generator.uniform(0, 0.1)):
            stderr, command = command.communicate(timeout=300)[1], None
            # Where much else runs, Ray may fail by itself; the same command goes on after that too.
            ended += not is_whole(home)
            assert ended <= MOST_OWN_ENDS, stderr + tune_log(home)
        elif kill(home, command, left[0]):
            target, began = left.pop(0), time.monotonic()
            if target == "trial":
                continue  # the sweep takes it up again by itself
            stderr = command.communicate(timeout=300)[1]
            print(f"{target}: the command ended after {time.monotonic() - began:.1f} s")
            assert target == "command" or is_whole(home) or "the same command" in stderr, stderr
            command = None
    if command is not None:
        command.communicate(timeout=300)
    answer = home.run("run", home.path.parent / "small.yaml", *ARGUMENTS)
    assert answer.exit_code == 0, answer.stderr
    check_sweep(home, expected)


def reached(home: Home, command: subprocess.Popen[str], wanted: int, later_s: float) -> bool:
    """Waits for so many reports and a moment longer; False if the command ended first."""
    if not wait_for(lambda: len(reports(home)) >= wanted, command):
        return False
    home.processes()  # remembers the sessions, so that nothing outlives the test
    time.sleep(later_s)
    return command.poll() is None


def tune_log(home: Home) -> str:
    return "".join(path.read_text()[-5000:] for path in home.path.glob("runs/*/logs/tune.log"))


def check_sweep(home: Home, expected: list[tuple[Any, ...]]) -> None:
    """No trial was lost, and no epoch trained for nothing."""
    assert table(home) == expected
    known = [(record["trial"], record["epoch"]) for record in reports(home)]
    assert len(known) == len(set(known))
