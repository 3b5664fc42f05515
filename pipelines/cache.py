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
    """Removes the entries of this run's stages whose artifact fails its check; returns the URIs concerned."""
    entries = read_entries(cache_root)
    dropped: list[str] = []
    outputs: dict[str, str] = {}
    for plan in plans:
        uri = stage_output(plan, facts, outputs)
        try:
            ref = open_artifact(uri, kind=KINDS[plan.name]).ref
        except ArtifactError:
            for path in entries.get(uri, ()):
                path.unlink(missing_ok=True)
                dropped.append(uri)
            discard(uri)
            break
        outputs[plan.name] = ref.to_json()
    return dropped


def read_entries(cache_root: Path) -> dict[str, list[Path]]:
    """Cache entries by the URI of the artifact they promise; unreadable ones are removed."""
    entries: dict[str, list[Path]] = {}
    for path in cache_root.glob("*.json"):
        try:
            uri = json.loads(json.loads(path.read_text())["Output"])["uri"]
        except (ValueError, KeyError, TypeError):
            path.unlink(missing_ok=True)
            continue
        entries.setdefault(uri, []).append(path)
    return entries


def discard(uri: str) -> None:
    """Sets a torn local artifact out of the way, so that its stage can write it again."""
    if not uri.startswith("s3://") and Path(uri).exists():
        shutil.rmtree(uri)
