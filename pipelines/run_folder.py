"""What a run leaves under `PENSTOCK_HOME/runs/RUN_ID`, and who owns it.

spec.json      the resolved spec          run.json       facts that every stage of the run needs
lock           held by the live command   events.jsonl   progress, drawn by the terminal view
tracking.jsonl what goes to MLflow        logs/          one file a stage, and runner.log
error.json     why it failed, if it did   result.json    what `penstock run --json` printed at the end
code.json      digests of the source files and versions of the libraries it was started with
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from components.artifacts.local_store import write_durably
from components.context import Context, read_lines
from components.errors import SpecError
from pipelines.processes import FileLock

RUN_FOLDER_VARIABLE = "PENSTOCK_RUN_FOLDER"
OWNER_VARIABLE = "PENSTOCK_RUN_OWNER"
"""Pid of the command that a runner and its steps belong to."""


def penstock_home() -> Path:
    """`PENSTOCK_HOME`, default `.penstock` in the working directory; absolute, private to its owner."""
    home = Path(os.environ.get("PENSTOCK_HOME") or ".penstock").expanduser().absolute()
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    return home


@dataclass(frozen=True)
class RunFacts:
    """What is fixed when a run is first started; a resumed run reads it back.

    Attributes:
        source_digest: Digest of the data source's content.
        code: Value of the `code` parameter of every stage.
        until: Last stage, or None for all.
        champion: {"uri", "digest"} of the champion that reigned at the first start that could ask MLflow, or None.
            Frozen, so that a resumed run is compared with the same one.
        history: {"uri", "digest"} of what earlier sweeps tell this run's, or None.
        accepted: What changed meanwhile and was accepted (`--accept-changes`): {"time", "changes", "code_version"}.
    """

    run_id: str
    identity: str
    home: str
    artifact_root: str
    tracking_uri: str
    spec_sha256: str
    code_version: str
    source_digest: str
    code: str
    until: str | None = None
    champion: dict[str, str] | None = None
    history: dict[str, str] | None = None
    offline: bool = False
    debug: bool = False
    accepted: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class RunFolder:
    """The folder of one run."""

    path: Path

    @property
    def run_id(self) -> str:
        return self.path.name

    @property
    def events_path(self) -> Path:
        return self.path / "events.jsonl"

    def create(self, facts: RunFacts, spec_json: str) -> None:
        (self.path / "logs").mkdir(parents=True, exist_ok=True)
        write_durably(self.path / "spec.json", spec_json)
        self.write_facts(facts)

    def write_facts(self, facts: RunFacts) -> None:
        write_durably(self.path / "run.json", json.dumps(asdict(facts), indent=1))

    def facts(self) -> RunFacts:
        return RunFacts(**json.loads((self.path / "run.json").read_text()))

    def exists(self) -> bool:
        return (self.path / "run.json").exists()

    def read_json(self, name: str) -> dict[str, Any] | None:
        path = self.path / name
        return json.loads(path.read_text()) if path.exists() else None

    def write_result(self, result: dict[str, Any]) -> None:
        write_durably(self.path / "result.json", json.dumps(result, indent=1))

    def clear_outcome(self) -> None:
        """Forgets how an earlier attempt ended."""
        for name in ("error.json", "result.json"):
            (self.path / name).unlink(missing_ok=True)

    def lock(self) -> FileLock:
        return FileLock(self.path / "lock")

    def events(self) -> list[dict[str, Any]]:
        return read_lines(self.events_path)

    def begun_stages(self) -> dict[str, float | None]:
        """Stages that began in the newest attempt, in their order: the seconds each took, None while it is open."""
        begun: dict[str, float | None] = {}
        for event in self.events():
            if event["kind"] == "attempt":
                begun.clear()
            elif event["kind"] == "begin":
                begun[event["stage"]] = None
            elif event["kind"] == "end":
                begun[event["stage"]] = event["metrics"]["seconds"]
        return begun

    def context(self, stage: str, work_folder: Path) -> Context:
        """The Context of a stage of this run."""
        facts = self.facts()
        return Context(
            run_id=facts.run_id,
            stage=stage,
            home=Path(facts.home),
            run_folder=self.path,
            work_folder=work_folder,
            spec_sha256=facts.spec_sha256,
            code_version=facts.code_version,
            tracking_uri=facts.tracking_uri,
            offline=facts.offline,
            debug=facts.debug,
        )

    def status(self) -> str:
        """running | done | refused | failed | stopped | interrupted (its command was killed; run it again)."""
        lock = self.lock()
        if not lock.acquire(shared=True):
            return "running"
        lock.release()
        result = self.read_json("result.json")
        return str(result["status"]) if result else "interrupted"


def runs_folder(home: Path) -> Path:
    return home / "runs"


def list_runs(home: Path) -> list[RunFolder]:
    """All runs of a home, oldest first."""
    folders = [RunFolder(path) for path in runs_folder(home).glob("*") if (path / "run.json").exists()]
    return sorted(folders, key=lambda folder: (folder.path / "spec.json").stat().st_mtime)


def find_run(home: Path, name: str) -> RunFolder:
    """The run called `name`, or the only one whose id starts with it.

    Raises:
        SpecError: If there is none, or several.
    """
    matches = [folder for folder in list_runs(home) if folder.run_id.startswith(name)]
    exact = [folder for folder in matches if folder.run_id == name]
    if len(exact or matches) == 1:
        return (exact or matches)[0]
    known = ", ".join(folder.run_id for folder in (matches or list_runs(home))[-5:]) or "none"
    problem = "is ambiguous" if matches else "is unknown"
    raise SpecError(f"The run {name!r} {problem}; runs here: {known}.")
