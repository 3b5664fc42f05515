from __future__ import annotations

import json
import socket
import threading
import time
from pathlib import Path

import pytest

from components.context import Context
from components.errors import UnavailableError
from components.tracking.client import EXPERIMENT, check_tracking, make_client
from components.tracking.sync import STATE, MlflowSync


@pytest.fixture
def journal(tmp_path: Path) -> Context:
    """A run whose journal has what a sweep and a training write."""
    run_folder = tmp_path / "runs" / "digits-0a1b"
    run_folder.mkdir(parents=True)
    context = Context(
        "digits-0a1b", "tune", tmp_path, run_folder, tmp_path, tracking_uri=f"sqlite:///{tmp_path}/mlflow.db"
    )
    context.track("params", params={"train": {"epochs": 3}, "seed": 0})
    for step in range(3):
        context.track("metrics", step=step, metrics={"loss": 1.0 / (step + 1)})
        context.track("metrics", run="tune/0", step=step, metrics={"accuracy": 0.5 + step / 10})
    context.track("tags", run="tune/0", tags={"state": "finished"})
    return context


def carrier(context: Context) -> MlflowSync:
    return MlflowSync(context.run_folder, context.tracking_uri, "digits", {"owner": "me"})


def runs_by_path(context: Context) -> dict:
    client = make_client(context.tracking_uri)
    experiment = client.get_experiment_by_name(EXPERIMENT)
    return {run.data.tags["penstock.path"]: run for run in client.search_runs([experiment.experiment_id])}


def test_journal_becomes_nested_runs_exactly_once_even_if_sent_twice(journal: Context) -> None:
    carrier(journal).sync()
    state = json.loads((journal.run_folder / STATE).read_text())
    (journal.run_folder / STATE).write_text(json.dumps({**state, "bytes": 0}))  # killed before it was written down
    carrier(journal).sync()
    runs = runs_by_path(journal)
    assert set(runs) == {"", "tune", "tune/0"}
    root, sweep, trial = runs[""], runs["tune"], runs["tune/0"]
    assert sweep.data.tags["mlflow.parentRunId"] == root.info.run_id
    assert trial.data.tags["mlflow.parentRunId"] == sweep.info.run_id
    assert root.data.params == {"train.epochs": "3", "seed": "0"}
    history = make_client(journal.tracking_uri).get_metric_history(root.info.run_id, "loss")
    assert [(item.step, item.value) for item in history] == [(0, 1.0), (1, 0.5), (2, pytest.approx(1 / 3))]


def test_lines_written_later_are_carried_and_a_torn_one_waits(journal: Context) -> None:
    sync = carrier(journal)
    sync.sync()
    torn = json.dumps({"time_ms": 1, "kind": "metrics", "run": None, "step": 9, "metrics": {"late": 1.0}}).encode()
    with (journal.run_folder / "tracking.jsonl").open("ab") as handle:
        handle.write(torn[:20])
    assert sync.sync() == 20
    with (journal.run_folder / "tracking.jsonl").open("ab") as handle:
        handle.write(torn[20:] + b"\n")
    assert sync.sync() == 0
    assert runs_by_path(journal)[""].data.metrics["late"] == 1.0


def test_finish_ends_the_run_and_what_is_open_below_it(journal: Context) -> None:
    journal.track("status", run="tune/0", status="finished")
    carrier(journal).finish("failed")
    status = {path: run.info.status for path, run in runs_by_path(journal).items()}
    assert status == {"": "FAILED", "tune": "FAILED", "tune/0": "FINISHED"}


def test_value_that_mlflow_refuses_is_counted_and_the_rest_goes_on(journal: Context) -> None:
    sync = carrier(journal)
    sync.sync()
    journal.track("params", params={"seed": 1, "fresh": 2})
    sync.sync()
    assert sync.rejected == 1
    assert runs_by_path(journal)[""].data.params["fresh"] == "2"


def test_server_that_never_answers_keeps_the_journal_and_says_so(
    journal: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with socket.create_server(("127.0.0.1", 0)) as server:
        sync = MlflowSync(journal.run_folder, f"http://127.0.0.1:{server.getsockname()[1]}", "digits", {})
        with pytest.raises(UnavailableError):
            sync.sync()
        assert sync.unsent_bytes == (journal.run_folder / "tracking.jsonl").stat().st_size
    carrier(journal).sync()  # the server is back, elsewhere
    assert carrier(journal).unsent_bytes == 0


def test_server_that_answers_garbage_is_survived(journal: Context) -> None:
    def garbage(server: socket.socket) -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            with connection:
                connection.recv(65536)
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\nConnection: close\r\n\r\n<html>")

    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=garbage, args=(server,), daemon=True).start()
        with pytest.raises(UnavailableError):
            MlflowSync(journal.run_folder, f"http://127.0.0.1:{server.getsockname()[1]}", "digits", {}).sync()
        assert check_tracking(f"http://127.0.0.1:{server.getsockname()[1]}") is None  # it does answer 200
        server.shutdown(socket.SHUT_RDWR)


def test_check_names_what_cannot_be_used(tmp_path: Path) -> None:
    assert check_tracking(f"sqlite:///{tmp_path}/new/mlflow.db") is None
    (tmp_path / "file").touch()
    started = time.monotonic()
    for uri in (f"sqlite:///{tmp_path}/file/mlflow.db", "http://127.0.0.1:9", "ftp://x", f"sqlite:///{tmp_path}"):
        error = check_tracking(uri)
        assert isinstance(error, UnavailableError) and error.exit_code == 2
    secret = check_tracking("http://me:hunter2@127.0.0.1:9")
    assert secret is not None and "hunter2" not in secret.message
    assert time.monotonic() - started < 30


def test_run_that_goes_on_after_its_end_was_told_is_running_again(journal: Context) -> None:
    def statuses() -> list[str]:
        runs = runs_by_path(journal)
        return [runs[path].info.status for path in ("", "sweep", "sweep/7", "sweep/8")]

    journal.track("metrics", run="sweep/7", step=1, metrics={"loss": 1.0})
    journal.track("metrics", run="sweep/8", step=1, metrics={"loss": 1.0})
    journal.track("status", run="sweep/7", status="FAILED")
    carrier(journal).finish("stopped")
    assert statuses() == ["KILLED", "KILLED", "FAILED", "KILLED"]
    journal.track("metrics", step=9, metrics={"late": 1.0})
    carrier(journal).sync()
    assert statuses() == ["RUNNING", "RUNNING", "FAILED", "RUNNING"]
    carrier(journal).finish("done")
    assert statuses() == ["FINISHED", "FINISHED", "FAILED", "FINISHED"]


def test_run_made_by_a_request_that_was_given_up_is_deleted(journal: Context) -> None:
    sync = carrier(journal)
    sync.sync()
    # The server was stopped, our request timed out and was made again, and then it took both.
    root = runs_by_path(journal)[""]
    client = make_client(journal.tracking_uri)
    late = client.create_run(root.info.experiment_id, tags={**root.data.tags}, start_time=root.info.start_time - 1000)
    carrier(journal).finish("done")
    assert client.get_run(late.info.run_id).info.lifecycle_stage == "deleted"
    assert runs_by_path(journal)[""].info.run_id == root.info.run_id


def test_runs_of_two_homes_with_one_id_do_not_mix(journal: Context, tmp_path: Path) -> None:
    carrier(journal).finish("done")
    other = tmp_path / "elsewhere" / "runs" / "digits-0a1b"
    other.mkdir(parents=True)
    (other / "tracking.jsonl").write_bytes((journal.run_folder / "tracking.jsonl").read_bytes())
    MlflowSync(other, journal.tracking_uri, "digits", {}).finish("failed")
    client = make_client(journal.tracking_uri)
    experiment = client.get_experiment_by_name(EXPERIMENT)
    roots = client.search_runs([experiment.experiment_id], "tags.`penstock.path` = ''")
    assert sorted(run.info.status for run in roots) == ["FAILED", "FINISHED"]


def test_database_that_was_replaced_is_sent_everything(journal: Context, tmp_path: Path) -> None:
    carrier(journal).sync()
    moved = Context(**{**vars(journal), "tracking_uri": f"sqlite:///{tmp_path}/other.db"})
    journal.track("metrics", step=3, metrics={"loss": 0.25})
    with pytest.raises(UnavailableError):
        carrier(moved).sync()
    carrier(moved).sync()
    root = runs_by_path(moved)[""]
    assert len(make_client(moved.tracking_uri).get_metric_history(root.info.run_id, "loss")) == 4
