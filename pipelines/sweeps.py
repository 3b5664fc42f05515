"""Finds the sweeps of runs, and what a new run's sweep begins with: decided once, when the run is made.

The records go into an artifact that is an input of the `tune` stage, so cache keys and resumes see them like any other.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from components.artifacts import Ref, open_artifact, write_artifact
from components.artifacts.store import store_for
from components.context import Context
from components.errors import ArtifactError, SpecError, StageError
from components.tune.history import (
    RecordedSweep,
    can_extend,
    is_comparable,
    observe_runs,
    observe_trials,
    read_sweep,
    records_to_extend,
)
from components.tune.journal import Record
from components.tune.stage import HISTORY_KIND, JOURNAL_NAME, StageConfig, describe_sweep, make_plan
from pipelines.cache import stage_output
from pipelines.run_folder import RunFacts, RunFolder, list_runs
from pipelines.runner import planned
from pipelines.spec import Spec
from pipelines.stages import KINDS, StagePlan


def find_journal(folder: RunFolder) -> Path:
    """The journal of a run's sweep; it may not be there yet.

    Raises:
        SpecError: If the run has no sweep, or its data was not read yet.
    """
    facts = folder.facts()
    outputs: dict[str, str] = {}
    for plan in planned(folder, facts):
        missing = [source for source in plan.inputs.values() if source not in outputs]
        if plan.name == "tune" and not missing:
            return Path(facts.home) / "work" / "tune" / Path(stage_output(plan, facts, outputs)).name / JOURNAL_NAME
        if plan.name == "tune":
            raise SpecError(f"The sweep of {folder.run_id} has not begun yet; continue it with `penstock run`.")
        _note_output(plan, facts, outputs)
    raise SpecError(f"{folder.run_id} has no sweep: its spec has no `tune` section.")


def _note_output(plan: StagePlan, facts: RunFacts, outputs: dict[str, str]) -> None:
    uri = stage_output(plan, facts, outputs)
    if store_for(uri).exists(uri):
        outputs[plan.name] = open_artifact(uri, kind=KINDS[plan.name]).ref.to_json()


def open_sweep(folder: RunFolder) -> RecordedSweep:
    """What became of a run's sweep so far.

    Raises:
        SpecError: If it has none, or it has not begun.
    """
    journal = find_journal(folder)
    if not journal.exists():
        raise SpecError(f"The sweep of {folder.run_id} has not begun yet; continue it with `penstock run`.")
    return read_sweep(journal)


def make_history(facts: RunFacts, spec: Spec) -> Ref | None:
    """Writes what the sweep of a run that is about to be made begins with; None if there is nothing.

    Raises:
        SpecError: If the MLflow experiment that the spec names does not exist.
    """
    if spec.tune is None:
        return None
    values, home = spec.to_dict(), Path(facts.home)
    config = StageConfig.model_validate({name: values[name] for name in StageConfig.model_fields})
    records, text = gather(config, earlier_sweeps(facts, spec), facts.tracking_uri)
    if not records:
        return None
    uri = f"{facts.artifact_root}/{HISTORY_KIND}/{facts.run_id}"
    context = Context(facts.run_id, "tune", home, home, home, facts.spec_sha256, facts.code_version)
    with write_artifact(uri, HISTORY_KIND, {}, context) as draft:
        draft.write_json("records.json", records)
        draft.metadata = {"text": text}
    assert draft.artifact is not None
    return draft.artifact.ref


def earlier_sweeps(facts: RunFacts, spec: Spec) -> list[tuple[str, RecordedSweep]]:
    """Sweeps of runs of the same name over the same data, oldest first, each once."""
    found: dict[Path, str] = {}
    for other in list_runs(Path(facts.home)):
        if other.run_id == facts.run_id or other.facts().source_digest != facts.source_digest:
            continue
        try:
            theirs = Spec.model_validate_json((other.path / "spec.json").read_text())
            if theirs.tune is not None and (theirs.name, theirs.data) == (spec.name, spec.data):
                found.setdefault(find_journal(other), other.run_id)
        except (ValueError, SpecError, ArtifactError):
            # A run of an earlier release, or one that has not begun: there is nothing to learn from it.
            continue
    return [(name, sweep) for path, name in found.items() if (sweep := _read(path)) is not None]


def _read(path: Path) -> RecordedSweep | None:
    try:
        return read_sweep(path) if path.exists() else None
    except StageError:
        return None


def gather(
    config: StageConfig, sweeps: Sequence[tuple[str, RecordedSweep]], tracking_uri: str
) -> tuple[list[Record], str]:
    """The records that a sweep begins with, and a sentence about them."""
    plan = make_plan(config)
    about = describe_sweep(config, plan)
    longest = [pair for pair in sweeps if can_extend(pair[1], about)]
    if longest:
        name, sweep = max(longest, key=lambda pair: pair[1].state.total)
        more = plan.facts.trials - sweep.state.total
        return records_to_extend(sweep), f"Goes on from the {sweep.state.total} trials of {name}: {more} more to run."
    if config.tune.search != "bayesian":
        return [], ""
    records: list[Record] = []
    outside = 0
    for name, sweep in sweeps if config.tune.warm_start else ():
        if is_comparable(sweep, about):
            found, strange = observe_trials(sweep, plan, name)
            records, outside = records + found, outside + strange
    records = unique(records)
    told = f"{len(records)} earlier trials lie in this space and are told to the search, {outside} do not."
    if config.tune.mlflow is not None:
        imported, strange = import_runs(config, plan, tracking_uri)
        records += imported
        told += f" Of MLflow's runs {len(imported)} lie in it, {strange} do not."
    return records, told


def unique(records: Sequence[Record]) -> list[Record]:
    """Of observations of the same configuration the one that came furthest, the earlier of equals."""
    best: dict[str, Record] = {}
    for record in records:
        key = repr(sorted(record["config"].items()))
        if key not in best or len(record["values"]) > len(best[key]["values"]):
            best[key] = record
    return list(best.values())


def import_runs(config: StageConfig, plan: Any, tracking_uri: str) -> tuple[list[Record], int]:
    from components.tracking.past_runs import read_past_runs

    wanted = config.tune.mlflow
    assert wanted is not None
    runs = read_past_runs(tracking_uri, wanted.experiment)
    return observe_runs(runs, plan, wanted.metric or plan.facts.metric, wanted.params, wanted.experiment)
