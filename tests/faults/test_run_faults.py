"""Faults of whole runs: kills at random moments and between stages, two commands at once, Ctrl-C, a full disk.

Rows E5, G1 and A17. Every run is the real command in a home of its own; an undisturbed one is the control.
"""

from __future__ import annotations

import json
import random
import shutil
import signal
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from components.context import read_lines
from pipelines.processes import session_members
from pipelines.ray_cluster import read_record
from tests.command import SMALL, SWEEP, Home, content, new_home, wait_for
from tests.faults.conftest import FULL

pytestmark = [pytest.mark.faults, pytest.mark.timeout(1800)]

GONE_WITHIN_S = 30.0
SWEPT = {**SMALL, "tune": SWEEP, "deploy": False}
# In short MLflow and the registry are left to G1: every start would import MLflow.
UNTIL = () if FULL else ("--until", "evaluate", "--offline")
STAGES = ("data", "tune", "train", "compress", "evaluate", "register", "deploy")


@dataclass(frozen=True)
class Control:
    """An undisturbed run.

    Attributes:
        home: Where it ran; a test may clear it and go on with its Ray.
        content: What it made.
        seconds: How long it took.
    """

    home: Home
    content: dict[str, str]
    seconds: float


@pytest.fixture(scope="module")
def control() -> Iterator[Control]:
    with new_home("pc-") as home:
        answer = home.run("run", home.write_spec(SWEPT), *UNTIL)
        assert answer.exit_code == 0, answer.stderr
        yield Control(home, content(home), answer.seconds)


def kill(home: Home, process: subprocess.Popen[str], whole_tree: bool) -> None:
    home.processes()  # remembers the sessions, so that what is left is found by them
    if whole_tree:
        home.kill_all()
    process.kill()
    process.communicate(timeout=60)


def check_trials(home: Home, kills: int) -> None:
    """No trial was lost, run twice, or went on after its end."""
    (path,) = home.path.glob("work/tune/*/trials.jsonl")
    records = read_lines(path)
    print("retries:", [(record["trial"], record["reason"]) for record in records if record["kind"] == "retry"])
    ends = [record["trial"] for record in records if record["kind"] == "end"]
    epochs = [(record["trial"], record["epoch"]) for record in records if record["kind"] == "report"]
    assert sorted(ends) == [0, 1, 2]
    assert len(epochs) == len(set(epochs))
    started = [event for event in home.events("trial") if event["state"] == "running"]
    assert len(started) <= 3 + kills


# What is killed at each kill: all processes of the run, or the command alone. In full 30 kills of the command and 20 of
# all its processes, in parts of five, so that full counts that were stopped go on behind the last part.
PARTS = [(False,) * 5] * 6 + [(True,) * 5] * 4 if FULL else [(False, True, False)]


@pytest.mark.parametrize(("part", "kinds"), enumerate(PARTS), ids=[f"part-{part}" for part in range(len(PARTS))])
def test_E5_killed_at_random_moments_it_resumes_and_ends_the_same(
    control: Control, home: Home, repeats: Callable, part: int, kinds: tuple[bool, ...]
) -> None:
    kills, generator = repeats(len(kinds), len(kinds)), random.Random(part)
    arguments, done, survived = ("run", home.write_spec(SWEPT), *UNTIL), 0, 0
    while done < kills:
        process = home.start(*arguments)
        moment_s = generator.uniform(0.1, 0.7) * control.seconds
        if wait_until(process, moment_s):
            check_end(home, control.content, survived)
            home.clear()
            survived = 0
            continue
        kill(home, process, whole_tree=kinds[done])
        gone_s = home.seconds_until_gone(GONE_WITHIN_S)
        done, survived = done + 1, survived + 1
        print(f"seed {part}: killed after {moment_s:.1f} s, all gone after {gone_s:.1f} s")
    answer = home.run(*arguments)
    assert answer.exit_code == 0, answer.stderr
    check_end(home, control.content, survived)


def check_end(home: Home, expected: dict[str, str], kills: int) -> None:
    result = home.result()
    assert result["status"] == "done", result
    check_trials(home, kills)
    assert content(home) == expected


def wait_until(process: subprocess.Popen[str], moment_s: float) -> bool:
    """Whether the command ended by itself within that time."""
    try:
        process.wait(moment_s)
    except subprocess.TimeoutExpired:
        return False
    return True


def ended_stages(home: Home) -> list[str]:
    return [event["stage"] for event in home.events("end")]


def ray_processes(home: Home) -> frozenset[int]:
    """The Ray of a home outlives a command by some seconds, and with an endpoint for good."""
    record = read_record(home.path)
    return frozenset(session_members(record.leader)) if record else frozenset()


def test_G1_killed_right_after_each_stage_only_the_open_one_is_redone(control: Control, repeats: Callable) -> None:
    killed_after = STAGES if FULL else STAGES[1::2]
    repeats(len(killed_after), len(killed_after))
    home = control.home
    for folder in home.path.iterdir():
        if folder.name != "ray":
            shutil.rmtree(folder) if folder.is_dir() else folder.unlink()
    spec = home.write_spec({**SMALL, "tune": SWEEP})
    for stage in killed_after:
        process = home.start("run", spec)
        assert wait_for(lambda stage=stage: stage in ended_stages(home), process), process.communicate()
        kill(home, process, whole_tree=False)
        home.seconds_until_gone(GONE_WITHIN_S, spare=ray_processes(home))
    answer = home.run("run", spec, "--json")
    assert answer.exit_code == 0, answer.stdout
    result = answer.document()
    ends = ended_stages(home)
    # A stage that had ended is not begun again, but for the two that are not cached and change nothing twice.
    assert [ends.count(stage) for stage in STAGES[:5]] == [1] * 5
    begun = [event["stage"] for event in home.events("begin")]
    assert all(begun.count(stage) <= 2 for stage in STAGES[:5])
    assert_one_version_one_deployment(home, result)
    assert content(home) == control.content  # what a stage makes does not depend on the stages behind it


def assert_one_version_one_deployment(home: Home, result: dict) -> None:
    database = sqlite3.connect(home.path / "mlflow.db")
    assert database.execute("select name, version from model_versions").fetchall() == [("small", 1)]
    assert dict(database.execute("select alias, version from registered_model_aliases"))["champion"] == 1
    names = [name for (name,) in database.execute("select name from runs")]
    assert len(names) == len(set(names)) == 5  # the run, its sweep, three trials
    assert [path.stem for path in (home.path / "endpoints").iterdir()] == ["small"]
    endpoint = json.loads((home.path / "endpoints" / "small.json").read_text())
    assert endpoint["digest"] == result["compressed"]["digest"]


def test_A17_of_two_commands_at_once_exactly_one_runs(home: Home, repeats: Callable) -> None:
    for number in range(repeats(10, 100)):
        # Another split each time, or the data stage would be answered from the cache.
        data = {**SMALL["data"], "split": {**SMALL["data"]["split"], "seed": number}}
        spec = home.write_spec(SMALL, data=data)
        arguments = ("run", spec, "--until", "data", "--json", "--debug", "--offline")
        commands = [home.start(*arguments) for _ in range(2)]
        answers = []
        for command in commands:
            stdout, stderr = command.communicate(timeout=600)
            answers.append((command.returncode, json.loads(stdout), stderr))
        codes = sorted(code for code, _, _ in answers)
        folder = home.path / "runs" / next(document["run_id"] for code, document, _ in answers if code == 0)
        if codes == [0, 0]:  # one had ended before the other asked: it was answered from the record
            assert any(document["stages"]["data"]["cached"] for _, document, _ in answers)
        else:
            assert codes == [0, 2]
            (error,) = [document["error"] for code, document, _ in answers if code == 2]
            assert error["kind"] == "busy"
            assert any(f"process {command.pid};" in error["message"] for command in commands)
        events = read_lines(folder / "events.jsonl")
        assert [event["kind"] for event in events].count("attempt") == 1
        assert [event["kind"] for event in events].count("begin") == 1


def test_A17_the_second_command_ends_at_once_and_names_the_first(home: Home) -> None:
    spec = home.write_spec(SWEPT)
    first = home.start("run", spec)
    assert wait_for(lambda: any(home.events("begin")), first)
    events = home.events()
    second = home.run("run", spec)
    print(f"the second command ended after {second.seconds:.1f} s")
    assert second.exit_code == 2
    assert f"process {first.pid}" in second.stderr
    assert len(second.stderr.strip().splitlines()[-1:]) == 1
    assert [event["kind"] for event in home.events()[: len(events)]] == [event["kind"] for event in events]
    assert first.poll() is None
    first.send_signal(signal.SIGTERM)
    first.communicate(timeout=60)


@pytest.mark.skipif(not FULL, reason="row A10 interrupts a run as well; full counts only")
def test_an_interrupted_run_says_so_and_goes_on(home: Home) -> None:
    arguments = ("run", home.write_spec(SWEPT, tune=None), "--until", "train", "--json")
    process = home.start(*arguments)
    assert wait_for(lambda: "data" in ended_stages(home), process)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    stopped = json.loads(stdout)
    assert stopped["status"] == "stopped"
    assert stopped["error"]["kind"] == "interrupted"
    assert "Traceback" not in stderr
    home.seconds_until_gone(GONE_WITHIN_S)
    answer = home.run(*arguments)
    assert answer.exit_code == 0, answer.stdout
    assert answer.document()["run_id"] == stopped["run_id"]
    assert answer.document()["stages"]["data"]["cached"]


@pytest.mark.skipif(not FULL, reason="row A8 fills a disk as well; full counts only")
def test_a_disk_that_fills_up_during_a_run_is_told_and_the_run_goes_on(home: Home, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k,mode=0700", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("no small disk can be mounted here")
    try:
        home.environment["PENSTOCK_ARTIFACT_ROOT"] = str(disk)
        arguments = ("run", home.write_spec(SMALL, deploy=False), "--until", "data")
        full = home.run(*arguments)
        assert full.exit_code == 1
        assert "disk is full" in full.stderr
        assert "Traceback" not in full.stderr
        assert not list(disk.rglob("manifest.json"))
        subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
        assert home.run(*arguments).exit_code == 0
    finally:
        subprocess.run(["umount", str(disk)], check=True)
