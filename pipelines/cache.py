"""Keeps kfp's local cache honest: an entry whose artifact is gone, torn or altered is dropped before a run.

kfp looks at the parameters of a step only. A deleted artifact behind an unchanged URI would be a false hit.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from components.artifacts import Ref, open_artifact
from components.artifacts.store import store_for
from components.errors import ArtifactError
from pipelines.identity import stage_key
from pipelines.run_folder import RunFacts
from pipelines.stages import KINDS, StagePlan, inputs_json


def stage_output(plan: StagePlan, facts: RunFacts, outputs: dict[str, str]) -> str:
    """URI at which a stage puts its artifact, given the Refs (as JSON) of the stages before it."""
    key = stage_key(plan.name, plan.config, inputs_json(plan, outputs), facts.code)
    return f"{facts.artifact_root}/{plan.name}/{key}"


def walk_artifacts(plans: Sequence[StagePlan], facts: RunFacts) -> dict[str, Ref]:
    """The artifacts that the stages have made so far, in order, up to the first that is absent.

    Raises:
        ArtifactError: If one is torn or altered; `uri` of the error's hint names it.
    """
    outputs: dict[str, str] = {}
    found: dict[str, Ref] = {}
    for plan in plans:
        if any(source not in outputs for source in plan.inputs.values()):
            break
        uri = stage_output(plan, facts, outputs)
        if not store_for(uri).exists(uri):
            break
        found[plan.name] = open_artifact(uri, kind=KINDS[plan.name]).ref
        outputs[plan.name] = found[plan.name].to_json()
    return found


def drop_rotten_entries(plans: Sequence[StagePlan], facts: RunFacts, cache_root: Path) -> list[str]:
    """Removes the entries of this run's stages whose artifact fails its check; returns the URIs concerned.

    A stage that is made again may well give the same bytes, and then the entries of the later ones count: the walk goes
    on with what the removed entry promised.
    """
    entries = read_entries(cache_root)
    dropped: list[str] = []
    outputs: dict[str, str] = {}
    for plan in plans:
        uri = stage_output(plan, facts, outputs)
        found = entries.get(uri, [])
        try:
            outputs[plan.name] = open_artifact(uri, kind=KINDS[plan.name]).ref.to_json()
        except ArtifactError:
            for path, _ in found:
                path.unlink(missing_ok=True)
                dropped.append(uri)
            discard(uri)
            if not found:
                break
            outputs[plan.name] = found[-1][1].to_json()
    return dropped


def read_entries(cache_root: Path) -> dict[str, list[tuple[Path, Ref]]]:
    """Cache entries and what they promise, by the URI of the artifact; unreadable ones are removed."""
    entries: dict[str, list[tuple[Path, Ref]]] = {}
    for path in cache_root.glob("*.json"):
        try:
            ref = Ref.from_json(json.loads(path.read_text())["Output"])
        except (ValueError, KeyError, TypeError):
            path.unlink(missing_ok=True)
            continue
        entries.setdefault(ref.uri, []).append((path, ref))
    return entries


def discard(uri: str) -> None:
    """Sets a torn local artifact out of the way, so that its stage can write it again."""
    if not uri.startswith("s3://") and Path(uri).exists():
        shutil.rmtree(uri)
