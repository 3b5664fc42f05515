from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from pipelines.cli import main
from pipelines.processes import free_port
from pipelines.run_folder import RunFolder
from pipelines.tracking import is_carried, only_carrier
from tests.builders import make_run_folder

SPEC: dict[str, Any] = {
    "name": "tracked",
    "task": "image-classification",
    "data": {"source": "builtin://digits"},
    "model": {"architecture": "mlp"},
    "register": False,
    "deploy": False,
}


@pytest.fixture
def folder(penstock_home: Path) -> RunFolder:
    """A killed run whose metrics wait."""
    folder = make_run_folder(penstock_home, f"http://127.0.0.1:{free_port()}")
    folder.context("train", penstock_home).track("metrics", step=1, metrics={"loss": 1.0})
    return folder


def statuses(home: Path) -> list[str]:
    with sqlite3.connect(home / "mlflow.db") as database:
        return [status for (status,) in database.execute("select status from runs")]


def test_sync_sends_an_offline_run_once(
    tmp_path: Path, penstock_home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = tmp_path / "spec.yaml"
    spec.write_text(json.dumps(SPEC))
    assert main(["run", str(spec), "--offline", "--debug", "--until", "data"]) == 0
    capsys.readouterr()
    main(["runs"])
    assert "penstock sync" in capsys.readouterr().out
    assert main(["sync", "tracked"]) == 0
    assert "FINISHED" in capsys.readouterr().out
    assert statuses(penstock_home) == ["FINISHED"]
    assert main(["sync", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"status": "done", "runs": []}


def test_sync_says_in_one_sentence_what_waits_for_a_dead_server(
    folder: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sync"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"of {folder.run_id} wait: MLflow at {folder.facts().tracking_uri} does not answer" in line
    assert not is_carried(folder)


def test_a_live_run_is_left_to_its_own_command(folder: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    lock = folder.lock()
    assert lock.acquire()
    assert main(["sync", folder.run_id]) == 2
    assert "is running" in capsys.readouterr().err
    assert main(["sync"]) == 0
    assert not is_carried(folder)
    lock.release()


def test_a_journal_has_one_carrier_at_a_time(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    from components.errors import BusyError

    monkeypatch.setattr("pipelines.tracking.STOP_WAIT_S", 0.0)
    monkeypatch.setattr("pipelines.tracking.ORPHAN_WAIT_S", 0.1)
    with only_carrier(folder), pytest.raises(BusyError, match=folder.run_id), only_carrier(folder):
        pass
