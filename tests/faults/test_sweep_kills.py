"""Row B1 on the real command: its sweep is killed in the command, in a trial's process, and in the head of its Ray.

Random search without a scheduler: the table of trials must come out as that of an undisturbed sweep.
"""

from __future__ import annotations

import os
import random
import signal
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

pytestmark = [pytest.mark.faults, pytest.mark.timeout(1800)]

SPACE = {"train.learning_rate": {"log_uniform": [1e-4, 1e-2]}}
SPEC = {**SMALL, "deploy": False, "tune": {"search": "random", "trials": 4, "retries": 3, "space": SPACE}}
SPEC["train"] = {**SMALL.get("train", {}), "epochs": 3}
GONE_WITHIN_S = 90.0


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


@pytest.fixture(scope="module")
def control() -> Iterator[list[tuple[Any, ...]]]:
    with new_home("pc-") as home:
        answer = home.run("run", home.write_spec(SPEC), "--until", "tune")
        assert answer.exit_code == 0, answer.stderr
        yield table(home)


def kill_command(home: Home, command: Any) -> None:
    command.kill()


def kill_trial(home: Home, command: Any) -> None:
    """One of Tune's actors; the sweep takes its trial up again by itself."""
    for pid in ray_pids(home):
        try:
            if "ImplicitFunc" in " ".join(psutil.Process(pid).cmdline()):
                os.kill(pid, signal.SIGKILL)
                return
        except (psutil.NoSuchProcess, ProcessLookupError):
            continue


def kill_head(home: Home, command: Any) -> None:
    for pid in ray_pids(home):
        try:
            if psutil.Process(pid).name() in ("gcs_server", "raylet"):
                os.kill(pid, signal.SIGKILL)
        except (psutil.NoSuchProcess, ProcessLookupError):
            continue


def ray_pids(home: Home) -> list[int]:
    record = read_record(home.path)
    return sorted(session_members(record.leader)) if record else []


KILLS = {"command": kill_command, "trial": kill_trial, "head": kill_head}


@pytest.mark.parametrize("target", KILLS)
def test_B1_after_any_kill_the_same_command_ends_with_the_same_table(
    control: list[tuple[Any, ...]], home: Home, repeats: Callable, target: str
) -> None:
    generator, arguments = random.Random(target), ("run", home.write_spec(SPEC), "--until", "tune")
    command, kills = None, 0
    # The head of a Ray takes half a minute to be missed.
    wanted_kills = repeats(1 if target == "head" else 3, 20)
    while kills < wanted_kills and not table_is_whole(home):
        # A sweep outlives the kill of a trial, and takes the next one too.
        if command is None or command.poll() is not None:
            command = home.start(*arguments)
        wanted = len(reports(home)) + generator.randint(1, 3)
        if not wait_for(lambda wanted=wanted: len(reports(home)) >= wanted, command):
            break
        home.processes()
        KILLS[target](home, command)
        kills += 1
        if target != "trial":
            command.communicate(timeout=300)
        if target == "command":
            # Its Ray stays for the next start.
            home.seconds_until_gone(GONE_WITHIN_S, spare=frozenset(ray_pids(home)))
    assert kills >= min(2, wanted_kills)
    if command is not None:
        command.communicate(timeout=300)
    answer = home.run(*arguments)
    assert answer.exit_code == 0, answer.stderr
    assert table(home) == control
    known = [(record["trial"], record["epoch"]) for record in reports(home)]
    assert len(known) == len(set(known))


def table_is_whole(home: Home) -> bool:
    path = journal(home)
    return path is not None and read_sweep(path).complete
