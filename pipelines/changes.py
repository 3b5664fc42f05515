"""What changed since a run was started: told field by field, refused, or accepted and written into the run's record.

penstock run SPEC --resume RUN                    refuses if the spec, the data, the code or a library changed
penstock run SPEC --resume RUN --accept-changes   goes on: a stage whose own part of the spec, or whose input, changed
                                                  begins anew; the others keep their results and checkpoints
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from components.artifacts.local_store import write_durably
from components.config import differences
from components.errors import SpecError
from pipelines.identity import code_facts, code_version
from pipelines.run_folder import RunFolder, list_runs
from pipelines.spec import Spec

CODE_NAME = "code.json"
"""In the run's folder: digest of each source file and version of each deciding library, when it was started."""
FILES_NAMED = 5
UNFINISHED = ("interrupted", "stopped", "failed")


def write_code(folder: RunFolder) -> None:
    """Records the code a run is started with."""
    write_durably(folder.path / CODE_NAME, json.dumps(code_facts(), indent=1))


def changes_since(folder: RunFolder, spec: Spec, source: str, until: str | None) -> list[str]:
    """Each difference between what a run was started with and now, as `name (old -> new)`."""
    facts = folder.facts()
    old = Spec.model_validate_json((folder.path / "spec.json").read_text())
    changes = [*differences(old.to_dict(), spec.to_dict())]
    if old.sha256 != facts.spec_sha256:
        changes.append("the spec, by an --accept-changes that was interrupted")
    if facts.source_digest != source:
        changes.append(f"the content of data.source ({short(facts.source_digest)} -> {short(source)})")
    if facts.code_version != code_version():
        changes.append(f"the code ({facts.code_version} -> {code_version()}: {', '.join(code_changes(folder))})")
    if facts.until != until:
        changes.append(f"--until ({facts.until} -> {until})")
    return changes


def short(digest: str) -> str:
    return digest.removeprefix("sha256:")[:12]


def code_changes(folder: RunFolder) -> Iterator[str]:
    """Libraries with their versions and source files that differ; of the files only some are named."""
    old, new = folder.read_json(CODE_NAME), code_facts()
    if old is None:
        yield "the run did not record its files"
        return
    yield from differences(old["libraries"], new["libraries"])
    files = sorted(name for name in {*old["files"], *new["files"]} if old["files"].get(name) != new["files"].get(name))
    yield from files[:FILES_NAMED]
    if len(files) > FILES_NAMED:
        yield f"and {len(files) - FILES_NAMED} more files"


def refuse_changes(folder: RunFolder, changes: list[str]) -> None:
    """Raises SpecError naming what changed since the run was started, if anything did."""
    if changes:
        raise SpecError(
            f"{folder.run_id} cannot be resumed: changed since then: {'; '.join(changes)}. Undo that, run without "
            "--resume, or accept it with --accept-changes."
        )


def accept_changes(folder: RunFolder, spec: Spec, source: str, identity: str, until: str | None) -> None:
    """Makes the run one of the spec, data and code of now, and writes into its record that it was another one.

    The stages' cache keys keep the code of the start, so that what is done, and the checkpoints of what is not, count.
    The caller holds the run's lock.
    """
    facts, changes = folder.facts(), changes_since(folder, spec, source, until)
    if not changes:
        return
    record = {"time": time.time(), "changes": changes, "code_version": [facts.code_version, code_version()]}
    number = len(facts.accepted) + 1
    write_durably(folder.path / f"spec.{number}.json", (folder.path / "spec.json").read_text())
    write_durably(folder.path / "spec.json", spec.canonical_json())
    write_code(folder)
    # Last: until then the same command finds the changes, or what is left of them, again.
    folder.write_facts(
        replace(
            facts,
            identity=identity,
            spec_sha256=spec.sha256,
            code_version=code_version(),
            source_digest=source,
            until=until,
            accepted=[*facts.accepted, record],
        )
    )
    folder.context("run", folder.path).warn(f"Goes on although changed (--accept-changes): {'; '.join(changes)}.")


def tell_left_behind(home: Path, new: RunFolder, spec: Spec, source: str, until: str | None) -> str | None:
    """What a user should know whose command starts a new run although one of that name is not finished; else None."""
    old = [folder for folder in list_runs(home) if folder.run_id != new.run_id and folder.status() in UNFINISHED]
    same = [folder for folder in old if spec_name(folder) == spec.name]
    if not same:
        return None
    folder = same[-1]
    changes = changes_since(folder, spec, source, until)
    if not changes:
        return None
    return (
        f"This is a new run, because {'; '.join(changes)} changed since {folder.run_id}, which is not finished; "
        f"`--resume {folder.run_id} --accept-changes` would go on with that one."
    )


def spec_name(folder: RunFolder) -> Any:
    values: Mapping[str, Any] = folder.read_json("spec.json") or {}
    return values.get("name")
