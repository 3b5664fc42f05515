"""Row 20 of the security checklist: canary secrets go through a run that succeeds and one that fails, and are found in
nothing that is left: files, output, tracking database, nor in the arguments of a process."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.command import SMALL, Answer, Home, all_pids, new_home, wait_for

pytestmark = [pytest.mark.faults, pytest.mark.timeout(3600)]

CANARIES = {
    "AWS_SECRET_ACCESS_KEY": "canary-aws-0f3c1b7a9d2e",
    "AWS_SESSION_TOKEN": "canary-session-5d8e2f6b1c4a",
    "MLFLOW_TRACKING_PASSWORD": "canary-mlflow-7b6a5c4d3e2f",
    "MLFLOW_TRACKING_TOKEN": "canary-token-1a2b3c4d5e6f",
    "HF_TOKEN": "canary-hub-9e8d7c6b5a4f",
}
LOOK_EVERY_S = 0.3
"""Looking at every process of the machine costs more than most of them."""
API_KEY = "canary-api-key-0123456789abcdef0123456789abcdef"


@pytest.fixture(scope="module")
def home() -> Iterator[Home]:
    with new_home("pk-") as home:
        keys = home.path.parent / "keys"
        keys.write_text(API_KEY + "\n")
        keys.chmod(0o600)
        home.environment.update({**CANARIES, "AWS_ACCESS_KEY_ID": "key", "PENSTOCK_API_KEYS_FILE": str(keys)})
        yield home


@pytest.fixture(scope="module")
def outputs(home: Home) -> tuple[list[Answer], list[str]]:
    """How a failing and a succeeding run ended, and the command lines of all processes seen meanwhile."""
    lines: list[str] = []
    failing = home.run("run", home.write_spec(SMALL, train={"epochs": 1, "learning_rate": 1e30, "precision": "fp32"}))
    process = home.start("run", home.write_spec())

    def deployed() -> bool:
        time.sleep(LOOK_EVERY_S)
        lines.extend(arguments_of(pid) for pid in home.processes())
        return any((home.path / "endpoints").glob("*.json"))

    assert wait_for(deployed, process), process.communicate()
    stdout, stderr = process.communicate(timeout=300)
    assert process.returncode == 0, stderr
    return [failing, Answer(0, stdout, stderr, 0.0)], lines


def arguments_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return ""


def secrets(home: Home) -> list[bytes]:
    token = (home.path / "ray" / "token").read_text()
    return [value.encode() for value in (*CANARIES.values(), API_KEY, token)]


def test_security_20_a_failing_run_fails(outputs: tuple[list[Answer], list[str]]) -> None:
    assert outputs[0][0].exit_code == 1
    assert "Traceback" not in outputs[0][0].stderr


def test_security_20_no_file_holds_a_secret(home: Home, outputs: tuple[list[Answer], list[str]]) -> None:
    hits = []
    looked_at = 0
    for path in home.path.rglob("*"):
        if path.is_file() and not path.is_symlink() and path != home.path / "ray" / "token":
            content = path.read_bytes()
            looked_at += 1
            hits += [str(path) for secret in secrets(home) if secret in content]
    assert looked_at > 50
    assert hits == []


def test_security_20_no_output_and_no_command_line_holds_a_secret(
    home: Home, outputs: tuple[list[Answer], list[str]]
) -> None:
    answers, lines = outputs
    told = "\n".join([*(answer.stdout + answer.stderr for answer in answers), *lines])
    assert len(lines) > 20
    assert [secret for secret in secrets(home) if secret.decode() in told] == []


def test_security_20_no_tag_or_parameter_in_mlflow_holds_a_secret(
    home: Home, outputs: tuple[list[Answer], list[str]]
) -> None:
    database = sqlite3.connect(home.path / "mlflow.db")
    tables = [name for (name,) in database.execute("select name from sqlite_master where type = 'table'")]
    rows = [str(row) for table in tables for row in database.execute(f'select * from "{table}"')]
    assert any("penstock" in row for row in rows)
    assert [row for row in rows if any(secret.decode() in row for secret in secrets(home))] == []


def test_security_20_the_token_is_private(home: Home, outputs: tuple[list[Answer], list[str]]) -> None:
    token = home.path / "ray" / "token"
    assert token.stat().st_mode & 0o777 == 0o600
    assert token.parent.stat().st_mode & 0o077 == 0
    assert len(token.read_text()) * 4 >= 256
    assert all_pids()
