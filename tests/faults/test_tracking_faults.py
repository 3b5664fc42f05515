"""Rows D1 to D4: the tracking server dies, never returns, or stops answering; the trainer dies.

A training journals its metrics, and a process beside it carries them to a real MLflow server. The step times that each
test prints are measured in turn by `make bench-tracking`. The controls show what MLflow's own client makes of it.
"""

from __future__ import annotations

import argparse
import os
import signal
import sqlite3
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import pytest

from components.artifacts import Artifact
from components.context import read_lines
from components.errors import UnavailableError
from components.tracking.client import ENFORCED, make_client, place_database
from components.tracking.sync import BATCH_BYTES, JOURNAL, JOURNAL_TAG, numbers, read_state, unsent_bytes
from components.train.launch import ContextWorker
from components.train.loop import train
from pipelines.commands.sync import command as sync_command
from pipelines.run import RunOptions, View, child_environment
from pipelines.run import run as run_spec
from pipelines.run_folder import RunFolder
from pipelines.tracking import Carrier, carried, is_carried
from tests.builders import make_run_folder
from tests.command import SMALL, Home, all_pids, belongs_to, wait_for
from tests.components.train.jobs import Stopped, make_job
from tests.mlflow_server import MlflowServer, running_server
from tests.relay import Relay

pytestmark = [pytest.mark.faults, pytest.mark.timeout(900)]

TERMINAL_WITHIN_S = 60.0
TRAINED = {**SMALL, "model": {"architecture": "mlp", "hidden_sizes": [8]}, "register": False, "deploy": False}
FEWEST_EPOCHS = 5
EPOCHS = {"epochs": 1_000_000, "checkpoint_every_epochs": 1_000_000}


@pytest.fixture(scope="module")
def live_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    with running_server(tmp_path_factory.mktemp("mlflow")) as server:
        yield server


@pytest.fixture
def server(live_server: MlflowServer) -> Iterator[MlflowServer]:
    """The one server; a test that kills it starts it again, one that stops it lets it go on."""
    yield live_server
    live_server.signal(signal.SIGCONT)


@dataclass(frozen=True)
class Observed(ContextWorker):
    """Journals like any worker, notes when, and is told by `going_on` when to stop."""

    going_on: Iterator[object] = field(default_factory=lambda: iter(()))
    times: list[float] = field(default_factory=list)

    def report(self, epoch: int, metrics: dict[str, float]) -> None:  # type: ignore[override]
        super().report(epoch, metrics)
        self.times.append(time.monotonic())
        if next(self.going_on, None) is None:
            raise Stopped


def train_through(
    folder: RunFolder, digits: Artifact, fault: Callable[[], Iterator[object]], **environment: str
) -> list[float]:
    """Trains while `fault` goes on, the journal being carried; gives the times at which epochs ended."""
    work = folder.path / "work"
    with carried(folder, {**child_environment(), **environment}) as carrier:
        worker = Observed(folder.context("train", work), going_on=fault())
        with pytest.raises(Stopped):
            train(make_job(digits, work, **EPOCHS), worker)
        carrier.stop("done")
    return worker.times


def sync() -> int:
    """`penstock sync`, in this process."""
    return sync_command(argparse.Namespace(run=None, json=False))


def sleeping(seconds: float) -> Iterator[object]:
    """Lets training go on for that long, and on a busy machine for some epochs at least."""
    until, epochs = time.monotonic() + seconds, 0
    while time.monotonic() < until or epochs < FEWEST_EPOCHS:
        epochs += 1
        yield True


def until_sent(folder: RunFolder) -> Iterator[object]:
    """Lets training go on until MLflow has taken something."""
    deadline = time.monotonic() + 300
    while (state := read_state(folder.path)) is None or not state.bytes:
        assert time.monotonic() < deadline
        yield True


def warnings_of(folder: RunFolder) -> list[str]:
    return [event["text"] for event in folder.events() if event["kind"] == "warning"]


def log_of(folder: RunFolder) -> str:
    """What the carrier of the run met."""
    return (folder.path / "logs" / "tracking.log").read_text()


def assert_exactly_once(folder: RunFolder, address: str, status: str) -> None:
    """Every value of the journal is in MLflow's history once, with its step and time, in one run in that state."""
    journalled = sorted(
        (name, line["step"], line["time_ms"], value)
        for line in read_lines(folder.path / JOURNAL)
        if line["kind"] == "metrics"
        for name, value in numbers(line["metrics"])
    )
    client, state = make_client(address), read_state(folder.path)
    assert state is not None and state.rejected == 0
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    (run,) = client.search_runs(experiments, f"tags.`{JOURNAL_TAG}` = '{state.journal}'")
    taken = sorted(
        (name, item.step, item.timestamp, item.value)
        for name in run.data.metrics
        for item in client.get_metric_history(run.info.run_id, name)
    )
    assert len(journalled) > 5 and taken == journalled
    assert run.info.status == status


def told(title: str, times: list[float], begin: float, end: float) -> None:
    """Prints the time of an epoch (8 steps and a validation) outside and inside the fault."""
    pairs = list(pairwise(times))
    inside = [later - sooner for sooner, later in pairs if begin <= sooner and later <= end]
    outside = [later - sooner for sooner, later in pairs if later <= begin]
    assert len(inside) >= FEWEST_EPOCHS - 1, "training did not go on"
    shown = [f"{1e3 * statistics.median(ones):.1f} ms" if ones else "-" for ones in (outside, inside)]
    worst = sorted(inside)[int(0.99 * len(inside))]
    print(
        f"{title}: an epoch takes {shown[0]} before, {shown[1]} during it (p99 {1e3 * worst:.1f} ms, n={len(inside)})"
    )


def test_D1_server_killed_during_a_training_loses_and_doubles_nothing(
    server: MlflowServer, digits: Artifact, tmp_path: Path, repeats: Callable
) -> None:
    folder, moments = make_run_folder(tmp_path, server.address), []

    def outage() -> Iterator[object]:
        yield from until_sent(folder)
        server.kill()
        moments.append(time.monotonic())
        yield from sleeping(repeats(5, 120))
        moments.append(time.monotonic())
        server.start()
        while unsent_bytes(folder.path) > BATCH_BYTES // 2:  # training goes on while the journal is replayed
            yield True

    times = train_through(folder, digits, outage)
    told("server killed", times, *moments)
    said = warnings_of(folder)
    assert [text for text in said if "wait in tracking.jsonl" in text] == said != [], log_of(folder)
    assert_exactly_once(folder, server.address, "FINISHED")


def test_D1_end_of_a_run_whose_answer_is_lost_is_told_again(server: MlflowServer, home: Home) -> None:
    relay = Relay(server.port)
    relay.lose_answer(b"runs/update", lambda: None)
    folder = make_run_folder(home.path, relay.address)
    for step in range(10):
        folder.context("train", home.path).track("metrics", step=step, metrics={"loss": 1.0})
    with carried(folder, {**child_environment(), "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}) as carrier:
        carrier.stop("done")
    assert "runs/update" in log_of(folder) and warnings_of(folder) == [], log_of(folder)
    assert_exactly_once(folder, server.address, "FINISHED")
    relay.close()


def test_D3_server_that_accepts_and_never_answers_stops_no_step(
    server: MlflowServer, digits: Artifact, home: Home, repeats: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It goes on only after the run's end; what it had accepted by then it carries out a second time."""
    folder, moments = make_run_folder(home.path, server.address), []

    def outage() -> Iterator[object]:
        yield from until_sent(folder)
        server.signal(signal.SIGSTOP)
        moments.append(time.monotonic())
        yield from sleeping(repeats(3, 60))
        moments.append(time.monotonic())

    # Requests are given up sooner than the 10 s of the default, so that some are in the short count too.
    times = train_through(folder, digits, outage, MLFLOW_HTTP_REQUEST_TIMEOUT="2")
    told("server stopped", times, *moments)
    assert f"penstock sync {folder.run_id}" in warnings_of(folder)[-1]
    folder.write_result({"status": "done"})
    server.signal(signal.SIGCONT)
    monkeypatch.setenv("PENSTOCK_HOME", str(home.path))
    assert sync() == 0
    assert_exactly_once(folder, server.address, "FINISHED")


def test_D1_D3_control_plain_client_raises_into_the_loop(server: MlflowServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """With its defaults of 120 s and 7 retries it blocks for minutes first; here a second and none."""
    from mlflow.exceptions import MlflowException

    client = make_client(server.address)
    run = client.create_run("0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    server.signal(signal.SIGSTOP)
    with pytest.raises(MlflowException, match="timed out"):
        client.log_metric(run.info.run_id, "loss", 1.0, step=0)
    server.signal(signal.SIGCONT)
    with pytest.raises(MlflowException):
        make_client("http://127.0.0.1:9").log_metric(run.info.run_id, "loss", 1.0, step=0)


def test_D2_run_without_its_server_ends_with_0_and_sync_replays_it_once(
    server: MlflowServer, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`sync` is killed after MLflow made the run, and again after it took the metrics: neither answer arrived."""
    relay = Relay(server.port, connections=1)  # the look at the start
    monkeypatch.setenv("PENSTOCK_HOME", str(home.path))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", relay.address)
    outcome = run_spec(TRAINED, None, RunOptions(until="train", debug=True), View())
    folder = RunFolder(home.run_folder())
    assert outcome.exit_code == 0
    assert f"penstock sync {folder.run_id}" in warnings_of(folder)[-1]
    with pytest.raises(UnavailableError):  # it is still gone
        sync()
    relay.open()
    for request in (b"runs/create", b"runs/log-batch"):
        process = home.start("sync", MLFLOW_TRACKING_URI=relay.address)
        relay.lose_answer(request, process.kill)
        process.communicate(timeout=120)
        assert process.returncode == -signal.SIGKILL
    assert not is_carried(folder)
    assert sync() == 0
    assert is_carried(folder)
    relay.close()
    assert_exactly_once(folder, server.address, "FINISHED")


def test_D2_control_a_replay_by_the_plain_client_doubles_metrics(server: MlflowServer) -> None:
    client = make_client(server.address)
    run = client.create_run("0")
    for _ in range(2):  # killed after the first time, before it could note that
        client.log_metric(run.info.run_id, "loss", 0.5, step=1)
        time.sleep(0.01)
    assert len(client.get_metric_history(run.info.run_id, "loss")) == 2


def statuses(database: Path) -> list[str]:
    """Of all runs in a database, read without MLflow."""
    if not database.exists():
        return []
    with sqlite3.connect(f"file:{database}?mode=ro", uri=True) as connection:
        return [status for (status,) in connection.execute("select status from runs")]


def wait_for_status(database: Path, status: str, seconds: float) -> None:
    """Waits for one run in that state; the end of another would be an error at once."""
    deadline = time.monotonic() + seconds
    while (now := statuses(database)) != [status]:
        assert now in ([], ["RUNNING"]) and time.monotonic() < deadline, now
        time.sleep(0.1)


def test_D4_command_killed_while_it_trains_is_told_to_mlflow(home: Home) -> None:
    """With --debug the command is the trainer itself."""
    spec = home.write_spec(TRAINED, train={**TRAINED["train"], "epochs": 100_000})
    process = home.start("run", spec, "--debug", "--until", "train")
    assert wait_for(lambda: any(event["stage"] == "train" for event in home.events("metric")), process)
    wait_for_status(home.path / "mlflow.db", "RUNNING", TERMINAL_WITHIN_S)
    process.kill()
    process.communicate(timeout=60)
    moment = time.monotonic()
    wait_for_status(home.path / "mlflow.db", "KILLED", TERMINAL_WITHIN_S)
    print(f"KILLED {time.monotonic() - moment:.1f} s after the command's death")
    assert RunFolder(home.run_folder()).status() == "interrupted"


def test_D4_pipeline_killed_under_its_command_has_failed(home: Home) -> None:
    process = home.start("run", home.write_spec(TRAINED), "--until", "data")
    found: list[int] = []
    assert wait_for(lambda: found.extend(runners(home)) or found, process)
    os.kill(found[0], signal.SIGKILL)
    process.communicate(timeout=120)
    assert process.returncode == 1
    assert RunFolder(home.run_folder()).status() == "failed"
    assert statuses(home.path / "mlflow.db") == ["FAILED"]


def runners(home: Home) -> list[int]:
    marked = [pid for pid in all_pids() if belongs_to(pid, home.path)]
    return [pid for pid in marked if b"pipelines.runner" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def test_D4_killed_with_its_carrier_it_is_told_by_the_next_command(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    database = home.path / "mlflow.db"
    folder = make_run_folder(home.path, f"sqlite:///{database}")
    folder.context("train", folder.path).track("metrics", step=1, metrics={"loss": 1.0})
    carrier = Carrier(folder, child_environment())
    wait_for_status(database, "RUNNING", TERMINAL_WITHIN_S)
    carrier._process.kill()
    carrier._process.wait()
    assert statuses(database) == ["RUNNING"]
    monkeypatch.setenv("PENSTOCK_HOME", str(home.path))
    assert sync() == 0
    assert statuses(database) == ["KILLED"]


def test_D4_control_plain_mlflow_run_of_a_killed_process_stays_running(tmp_path: Path) -> None:
    database = tmp_path / "mlflow.db"
    place_database(database)
    script = (
        "import mlflow, os, signal\n"
        f"mlflow.set_tracking_uri('sqlite:///{database}')\n"
        "with mlflow.start_run():\n"
        "    mlflow.log_metric('loss', 1.0)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], env={**os.environ, **ENFORCED}, check=False, timeout=120)
    assert done.returncode == -signal.SIGKILL
    assert statuses(database) == ["RUNNING"]
