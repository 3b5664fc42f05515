"""`penstock run`: from a spec to an endpoint. Decides which run this is, owns it, starts its runner, tells its end.

outcome = execute(prepare(loaded, options), view)
outcome.result["endpoint"]["url"]
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from components.context import end_torn_line, parse_lines
from components.errors import ArtifactError, BusyError, DataError, PenstockError, PreemptedError
from pipelines.changes import accept_changes, changes_since, refuse_changes, tell_left_behind, write_code
from pipelines.identity import code_digest, code_version, run_identity
from pipelines.processes import FileLock
from pipelines.ray_cluster import lease
from pipelines.run_folder import OWNER_VARIABLE, RunFacts, RunFolder, find_run, list_runs, runs_folder
from pipelines.spec import LoadedSpec, Spec
from pipelines.tracking import carried

ID_DIGITS = 10
POLL_S = 0.2
MAKING_WAIT_S = 120.0
"""A sweep that begins reads the earlier ones, and verifies their data."""
TERMINATE_WAIT_S = 24.0
"""A training writes its checkpoint first; a cluster that sends SIGTERM waits 30 s."""


@dataclass(frozen=True)
class RunOptions:
    """What the command line adds to the spec."""

    until: str | None = None
    fresh: bool = False
    resume: str | None = None
    accept_changes: bool = False
    offline: bool = False
    debug: bool = False


@dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    result: dict[str, Any]
    exit_code: int
    error: dict[str, Any] | None = None


class View:
    """Sees the run's events as they come. The base draws nothing."""

    def update(self, events: list[dict[str, Any]]) -> None:
        """Told every 0.2 s what is new."""

    def close(self) -> None:
        """Told once at the end."""


def tracking_uri(home: Path) -> str:
    """MLflow's address: `MLFLOW_TRACKING_URI`, or a sqlite file in the home.

    It is written into the run, so a password in it is taken out, and handed to MLflow's client by the environment.
    """
    from components.tracking.client import split_credentials

    uri, credentials = split_credentials(os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{home / 'mlflow.db'}")
    for name, value in credentials.items():
        os.environ.setdefault(name, value)
    return uri


def prepare(loaded: LoadedSpec, options: RunOptions, home: Path) -> RunFolder:
    """Finds or makes the folder of the run that `loaded` and `options` name.

    The data is looked into only for a new run: one of the same identity has the same data, and was let pass. So a
    finished run is answered, and one that another command holds refused, at once.

    Raises:
        SpecErrors: If the data is not what the spec says.
        SpecError: If `--resume` names a run that differs from the spec now, and not `--accept-changes`; says in what.
    """
    from pipelines.preflight import check_data, check_machine, check_memory

    spec = loaded.spec
    source = digest_of(loaded, home)
    identity = run_identity(spec.canonical_json(), source, options.until)
    if options.resume is not None:
        return _resume(find_run(home, options.resume), loaded, source, identity, options)
    if options.fresh or _newest_of(home, identity) is None:
        check_data(loaded)
        check_machine(loaded)
        check_memory(loaded)
    # Two commands that start at once must find or make the same folder, and make it once.
    making = FileLock(runs_folder(home) / ".making")
    if not making.acquire(wait_s=MAKING_WAIT_S):
        raise BusyError(
            f"Process {making.holder()} has been starting a run in {home} for {MAKING_WAIT_S:.0f} s; wait for it, or "
            "end it if it hangs."
        )
    try:
        existing = None if options.fresh else _newest_of(home, identity)
        if existing is not None:
            return existing
        folder = _create(home, spec, source, identity, options)
        told = None if options.fresh else tell_left_behind(home, folder, spec, source, options.until)
        if told is not None:
            folder.context("run", folder.path).warn(told)
        return folder
    finally:
        making.release()


def _resume(folder: RunFolder, loaded: LoadedSpec, source: str, identity: str, options: RunOptions) -> RunFolder:
    """The run that `--resume` names, if it is of this spec, data and code or is to be from now on."""
    from pipelines.preflight import check_data, check_machine, check_memory

    if folder.facts().identity == identity:
        return folder
    if not options.accept_changes:
        refuse_changes(folder, changes_since(folder, loaded.spec, source, options.until))
    check_data(loaded)
    check_machine(loaded)
    check_memory(loaded)
    with owned(folder):
        accept_changes(folder, loaded.spec, source, identity, options.until)
    return folder


def digest_of(loaded: LoadedSpec, home: Path) -> str:
    """Digest of the source's content; if it cannot be read, all that is wrong with the data is told at once."""
    from components.data.digest import source_digest
    from components.data.stage import digest_cache
    from pipelines.preflight import check_data

    try:
        return source_digest(loaded.spec.data, None, digest_cache(home))
    except DataError:
        check_data(loaded)
        raise


def _newest_of(home: Path, identity: str) -> RunFolder | None:
    """The latest run of this identity: `NAME-DIGEST`, or `NAME-DIGEST-N` after `--fresh`.

    One that got it by `--accept-changes` has the digits of another one and counts where there is no such run.
    """
    same = [folder for folder in list_runs(home) if folder.facts().identity == identity]
    return max(same, key=lambda folder: _attempt_of(folder.run_id, identity), default=None)


def _attempt_of(run_id: str, identity: str) -> int:
    _, digits, number = run_id.rpartition(identity[:ID_DIGITS])
    return int(number.lstrip("-") or 1) if digits else 0


def _run_id(spec: Spec, identity: str, attempt: int) -> str:
    return f"{spec.name}-{identity[:ID_DIGITS]}" + (f"-{attempt}" if attempt > 1 else "")


def _create(home: Path, spec: Spec, source: str, identity: str, options: RunOptions) -> RunFolder:
    latest = _newest_of(home, identity)
    attempt = _attempt_of(latest.run_id, identity) + 1 if latest else 1
    # A run that is another one by now, by --accept-changes, keeps its name.
    while (runs_folder(home) / _run_id(spec, identity, attempt) / "run.json").exists():
        attempt += 1
    run_id = _run_id(spec, identity, attempt)
    facts = RunFacts(
        run_id=run_id,
        identity=identity,
        home=str(home),
        artifact_root=os.environ.get("PENSTOCK_ARTIFACT_ROOT") or str(home / "artifacts"),
        tracking_uri=tracking_uri(home),
        spec_sha256=spec.sha256,
        code_version=code_version(),
        source_digest=source,
        # A fresh run shares no cache entry with earlier ones, and still finds its own when it is resumed.
        code=code_digest() + (f"+{attempt}" if attempt > 1 else ""),
        until=options.until,
    )
    if not options.fresh:
        from pipelines.sweeps import make_history

        # Before the run is there: one that was made without its history would go on without it for ever.
        history = make_history(facts, spec)
        if history is not None:
            facts = replace(facts, history={"uri": history.uri, "digest": history.digest})
    folder = RunFolder(runs_folder(home) / run_id)
    folder.path.mkdir(parents=True, exist_ok=True)
    write_code(folder)
    folder.create(facts, spec.canonical_json())
    return folder


@contextlib.contextmanager
def owned(folder: RunFolder) -> Iterator[FileLock]:
    """Holds the run's lock; while it is held, the stages live.

    Raises:
        BusyError: If another live command holds it.
    """
    lock = folder.lock()
    if not lock.acquire(wait_s=0.5):
        raise BusyError(
            f"{folder.run_id} is being run by process {lock.holder()}; wait for it, or end it with "
            f"`penstock stop {folder.run_id}`."
        )
    try:
        yield lock
    finally:
        lock.release()


def execute(folder: RunFolder, options: RunOptions, view: View) -> Outcome:
    """Runs (or continues, or answers from the cache) the run of `folder` to its end."""
    with owned(folder), contextlib.closing(view):
        done = finished_result(folder)
        if done is not None:
            view.update(folder.events())
            return done
        home = Path(folder.facts().home)
        start(folder, options)
        tail = EventTail(folder)
        with lease(home), carried(folder, child_environment()) as carrier:
            exit_code = run_debug(folder, view, tail) if options.debug else run_child(folder, view, tail)
            outcome = conclude(folder, exit_code)
            carrier.stop(outcome.result["status"])
            view.update(tail.new())
        return outcome


def finished_result(folder: RunFolder) -> Outcome | None:
    """The recorded outcome of a finished run, if what it promises still holds: artifacts whole, endpoint answering."""
    from pipelines.results import build_result

    recorded = folder.read_json("result.json")
    if recorded is None or recorded["status"] not in ("done", "refused"):
        return None
    try:
        now = build_result(folder, recorded["status"])
    except ArtifactError:
        return None
    whole = all(now["stages"][name]["artifact"] == stage["artifact"] for name, stage in recorded["stages"].items())
    if not whole or (recorded["endpoint"] and not endpoint_is_live(folder, recorded)):
        return None
    for stage in recorded["stages"].values():
        stage["cached"] = stage["artifact"] is not None
    return Outcome(recorded, 0 if recorded["status"] == "done" else 3)


def endpoint_is_live(folder: RunFolder, recorded: Mapping[str, Any]) -> bool:
    from components.serve.endpoint import is_live, read_endpoint

    record = read_endpoint(Path(folder.facts().home), recorded["registered"]["name"])
    served = recorded["compressed"] or recorded["model"]
    return record is not None and record.digest == served["digest"] and is_live(record)


def start(folder: RunFolder, options: RunOptions) -> None:
    """Checks what a run needs before anything is started, and marks a new attempt."""
    from pipelines.preflight import check_services, reigning_champion

    facts = folder.facts()
    check_services(folder, options)
    # An offline attempt could not ask who reigns. Once known it is not asked again, which takes seconds of imports.
    if facts.offline or not folder.events_path.exists():
        facts = replace(facts, champion=None if options.offline else reigning_champion(folder))
    folder.write_facts(replace(facts, offline=options.offline, debug=options.debug))
    folder.clear_outcome()
    for name in ("events.jsonl", "tracking.jsonl"):
        end_torn_line(folder.path / name)
    folder.context("run", folder.path).event("attempt")


def run_child(folder: RunFolder, view: View, tail: EventTail) -> int:
    """Runs the pipeline in its child process, drawing its events; returns 0, 1, or 130 when interrupted."""
    with (folder.path / "logs" / "runner.log").open("ab") as log:
        child = subprocess.Popen(
            [sys.executable, "-m", "pipelines.runner", str(folder.path)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            env=child_environment(),
        )
    interrupted = Interrupt()
    with interrupted.handling():
        while child.poll() is None and not interrupted.received:
            time.sleep(POLL_S)
            view.update(tail.new())
        if interrupted.received:
            tell_stopping(folder)
            view.update(tail.new())
            end_group(child, interrupted)
        view.update(tail.new())
    # The runner ends with 130 when it is told to end by somebody else.
    return 130 if interrupted.received or child.returncode in (130, -signal.SIGTERM) else int(child.returncode != 0)


def child_environment() -> dict[str, str]:
    """What the runner and its steps inherit."""
    root = str(Path(__file__).resolve().parent.parent)
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": path, OWNER_VARIABLE: str(os.getpid())}


class Interrupt:
    """Counts SIGINT, SIGTERM and SIGHUP, so that a run ends in order; whoever sends two has no patience."""

    def __init__(self) -> None:
        self.received = 0

    @contextlib.contextmanager
    def handling(self) -> Iterator[None]:
        numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        try:
            previous = {number: signal.signal(number, self._note) for number in numbers}
        except ValueError:  # not in the main thread: penstock.run() called from elsewhere
            previous = {}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _note(self, *_: Any) -> None:
        self.received += 1


def tell_stopping(folder: RunFolder) -> None:
    text = "Stopping: a training writes its checkpoint first. The same signal again ends it at once."
    folder.context("run", folder.path).event("note", text=text)


def end_group(child: subprocess.Popen, interrupted: Interrupt) -> None:
    """Ends the runner and its steps: SIGTERM, then SIGKILL after 24 s or at once if the command is interrupted again.

    Ray ends the actors of a dead step itself.
    """
    for number, wait_s in ((signal.SIGTERM, TERMINATE_WAIT_S), (signal.SIGKILL, 5.0)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, number)
        deadline = time.monotonic() + wait_s
        while time.monotonic() < deadline and not (number == signal.SIGTERM and interrupted.received > 1):
            child.poll()
            try:
                os.killpg(child.pid, 0)
            except ProcessLookupError:
                return
            time.sleep(0.1)


def run_debug(folder: RunFolder, view: View, tail: EventTail) -> int:
    """Runs the stages one after the other in this process, where a debugger can stop in them."""
    from pipelines.debug import run_in_process

    try:
        run_in_process(folder, lambda: view.update(tail.new()))
        return 0
    except KeyboardInterrupt:
        return 130
    finally:
        view.update(tail.new())


class EventTail:
    """Reads what was appended to the events of a run since it was last asked."""

    def __init__(self, folder: RunFolder) -> None:
        self.path = folder.events_path
        self.offset = self.path.stat().st_size if self.path.exists() else 0

    def new(self) -> list[dict[str, Any]]:
        if not self.path.exists():
            return []
        with self.path.open("rb") as handle:
            handle.seek(self.offset)
            whole, newline, _ = handle.read().rpartition(b"\n")
        self.offset += len(whole) + len(newline)
        return parse_lines(whole + newline)


def conclude(folder: RunFolder, child_code: int) -> Outcome:
    """Writes and returns how the run ended."""
    from pipelines.results import build_result, gate_status

    error = folder.read_json("error.json")
    preempted = error is not None and error["kind"] == PreemptedError.kind
    if child_code == 130 or preempted:
        result = build_result(folder, "stopped")
        told = f"{error['message']} " if error is not None and preempted else ""
        message = f"{told}Stopped; `penstock run` with the same spec continues {folder.run_id}."
        error = {"kind": "interrupted", "message": message, "field": None, "line": None, "hint": None}
        outcome = Outcome(result, 130, error)
    elif child_code != 0:
        error = error or PenstockError(f"The pipeline ended; see {folder.path / 'logs' / 'runner.log'}.").as_dict()
        outcome = Outcome(build_result(folder, "failed"), int(error.get("exit_code", 1)), error)
    else:
        result = build_result(folder, "done")
        result["status"] = gate_status(result)
        outcome = Outcome(result, 0 if result["status"] == "done" else 3)
    folder.write_result({**outcome.result, "error": outcome.error} if outcome.error else outcome.result)
    return outcome


def run(
    source: str | Path | Mapping[str, Any],
    overrides: Mapping[str, Any] | None = None,
    options: RunOptions | None = None,
    view: View | None = None,
    on_start: Callable[[RunFolder], None] | None = None,
) -> Outcome:
    """Loads, checks and runs a spec; see `execute`."""
    from pipelines.run_folder import penstock_home
    from pipelines.spec import load_spec

    home, options = penstock_home(), options or RunOptions()
    loaded = load_spec(source, overrides)
    folder = prepare(loaded, options, home)
    if on_start is not None:
        on_start(folder)
    return execute(folder, options, view or View())
