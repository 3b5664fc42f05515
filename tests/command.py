"""The real command, run as a user runs it: in a home of its own, watched from outside, killed when a test says so."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from components.context import read_lines
from pipelines.processes import session_members, signal_all, start_time
from pipelines.ray_cluster import read_record

ROOT = Path(__file__).resolve().parent.parent
RUN_TIMEOUT_S = 600.0

SMALL: dict[str, Any] = {
    "version": 1,
    "name": "small",
    "task": "image-classification",
    "data": {"source": "builtin://digits", "split": {"validation": 0.1, "test": 0.25}},
    "model": {"architecture": "mlp", "hidden_sizes": [64]},
    # fp32, because `auto` may choose otherwise the next time: bit equality is what the tests ask for.
    "train": {"epochs": 4, "global_batch_size": 64, "learning_rate": 3e-3, "precision": "fp32"},
    "compress": {"candidates": ["int8-dynamic"], "accept": {"max_drop": 0.1}},
    "evaluate": {"resamples": 100},
    "deploy": {"port": 0},
}
SWEEP = {
    "search": "random",
    "trials": 3,
    "concurrency": 1,
    "space": {"train.learning_rate": {"log_uniform": [1e-3, 1e-2]}},
}


@dataclass(frozen=True)
class Answer:
    """How a command ended."""

    exit_code: int
    stdout: str
    stderr: str
    seconds: float

    def document(self) -> dict[str, Any]:
        """The one JSON document on standard output."""
        return json.loads(self.stdout)


@dataclass
class Home:
    """A `PENSTOCK_HOME`, the commands that run in it and the processes that belong to it."""

    path: Path
    environment: dict[str, str] = field(default_factory=dict)
    sessions: dict[int, int | None] = field(default_factory=dict)
    """Leader -> its start time, as a pid may be another process's by now."""

    def write_spec(self, values: Mapping[str, Any] = SMALL, **sections: Any) -> Path:
        """A spec beside the home; JSON is YAML."""
        spec = self.path.parent / "small.yaml"
        spec.write_text(json.dumps({**values, **sections}))
        return spec

    def start(self, *arguments: str | Path, **environment: str) -> subprocess.Popen[str]:
        """Starts `penstock ARGUMENTS` at the head of a session of its own."""
        ours = {name: value for name, value in os.environ.items() if name not in ("RAY_ADDRESS", "MLFLOW_TRACKING_URI")}
        process = subprocess.Popen(
            [sys.executable, "-m", "pipelines.cli", *map(str, arguments)],
            cwd=ROOT,
            env={**ours, **self.environment, **environment, "PENSTOCK_HOME": str(self.path)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self._remember(process.pid)
        return process

    def run(self, *arguments: str | Path, timeout_s: float = RUN_TIMEOUT_S, **environment: str) -> Answer:
        """Runs a command to its end."""
        started = time.monotonic()
        process = self.start(*arguments, **environment)
        try:
            stdout, stderr = process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            self.kill_all()
            raise
        return Answer(process.returncode, stdout, stderr, time.monotonic() - started)

    def processes(self) -> set[int]:
        """Pids of all that runs for this home, by their environment and by the sessions they were seen in.

        Ray's workers overwrite their environment with a title, so it is the session that finds them.
        """
        marked = {pid for pid in all_pids() if belongs_to(pid, self.path) and pid != os.getpid()}
        for pid in marked:
            try:
                self._remember(os.getsid(pid))
            except ProcessLookupError:
                continue
        record = read_record(self.path)
        if record is not None and record.alive():
            self._remember(record.leader)
        self._forget_ended_sessions()
        return marked.union(*map(session_members, self.sessions))

    def _remember(self, session: int) -> None:
        if session != os.getsid(0):
            self.sessions.setdefault(session, start_time(session))

    def _forget_ended_sessions(self) -> None:
        """While a session has a member, no process can get its number as a pid."""
        for session, started in list(self.sessions.items()):
            now = start_time(session)
            if not session_members(session) or (now is not None and now != started):
                del self.sessions[session]

    def kill_all(self) -> None:
        """SIGKILL to everything at once, and again to what was started meanwhile."""
        for _ in range(3):
            signal_all(self.processes(), signal.SIGKILL)

    def seconds_until_gone(self, timeout_s: float, spare: frozenset[int] = frozenset()) -> float:
        """Waits until no process is left; fails with what still runs."""
        started = time.monotonic()
        while left := {pid for pid in self.processes() if start_time(pid) is not None} - spare:
            if time.monotonic() - started > timeout_s:
                raise AssertionError(f"{len(left)} processes left after {timeout_s} s: {[describe(p) for p in left]}")
            time.sleep(0.25)
        return time.monotonic() - started

    def clear(self) -> None:
        """Forgets all runs, as if the home were new."""
        self.kill_all()
        self.seconds_until_gone(30)
        shutil.rmtree(self.path)

    def run_folder(self) -> Path:
        """The folder of the only run."""
        (folder,) = [path for path in (self.path / "runs").iterdir() if (path / "run.json").exists()]
        return folder

    def events(self, kind: str | None = None) -> list[dict[str, Any]]:
        paths = (self.path / "runs").glob("*/events.jsonl")
        return [event for path in paths for event in read_lines(path) if kind in (None, event["kind"])]

    def result(self) -> dict[str, Any]:
        return json.loads((self.run_folder() / "result.json").read_text())


def all_pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def belongs_to(pid: int, home: Path) -> bool:
    """Whether a process was started for this home."""
    try:
        environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        arguments = Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return False
    return f"PENSTOCK_HOME={home}".encode() in environment or f"{home}/".encode() in arguments


def describe(pid: int) -> str:
    """What a process is, for a failing test."""
    try:
        arguments = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except (FileNotFoundError, ProcessLookupError):
        return str(pid)
    return f"{pid} {b' '.join(arguments).decode(errors='replace')[:90]}"


def wait_for(condition: Callable[[], object], process: subprocess.Popen[str], timeout_s: float = RUN_TIMEOUT_S) -> bool:
    """Waits until the condition holds or the command has ended; returns whether it held first."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if process.poll() is not None:
            return False
        assert time.monotonic() < deadline, f"what was waited for did not happen within {timeout_s} s"
        time.sleep(0.05)
    return True


@contextmanager
def new_home(prefix: str = "ps-") -> Iterator[Home]:
    """A home under /tmp, short because Ray's sockets lie below it; nothing of it outlives the block."""
    folder = Path(tempfile.mkdtemp(prefix=prefix, dir="/tmp"))
    home = Home(folder / "h")
    try:
        yield home
    finally:
        home.kill_all()
        home.seconds_until_gone(30)
        shutil.rmtree(folder, ignore_errors=True)


def content(home: Home) -> dict[str, str]:
    """What a run has made, as digests: stage by stage, and the file that each promise is about.

    Registration and deployment name a port and a version; these are compared by themselves.
    """
    from components.artifacts import open_artifact
    from components.artifacts.manifest import file_sha256

    found = {}
    for stage, facts in home.result()["stages"].items():
        if facts["artifact"] is None or stage in ("register", "deploy"):
            continue
        artifact = open_artifact(facts["artifact"])
        found[stage] = artifact.digest
        names = ("trials.json", "best.json", "model.safetensors", "model/model.onnx", "predictions.parquet")
        found.update(
            {f"{stage}/{name}": file_sha256(artifact.path / name) for name in names if (artifact.path / name).exists()}
        )
    return found
