"""What earlier sweeps know: read from their journals, and told to a new one where it fits.

A sweep that asks the same with more trials goes on from all records of the earlier one. A sweep with another space or
searcher is told the trials that lie in its space. Either way the records become the beginning of the new journal, so
that the new sweep, too, can be rebuilt from its journal alone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from components.errors import StageError
from components.models.config import ModelConfig
from components.train.config import TrainConfig
from components.tune.distributions import Distribution, plain
from components.tune.expression import MissingField, look_up
from components.tune.fields import apply_config
from components.tune.journal import Record, parse_records
from components.tune.space import SearchSpace
from components.tune.state import ENDED, SweepFacts, SweepState, Trial
from components.tune.sweep import SweepPlan

FREE_TO_CHANGE = ("trials", "concurrency", "retries", "warm_start", "mlflow")
"""Fields of `tune` that do not change what is asked."""
NOT_COMPARED = (
    "workers",
    "zero",
    "environment",
    "keep_checkpoints",
    "checkpoint_every_epochs",
    "checkpoint_every_steps",
    "checkpoint_in_background",
)
"""Fields of `train` that do not change what a trial comes to."""
_MODEL: TypeAdapter[Any] = TypeAdapter(ModelConfig)


@dataclass(frozen=True)
class RecordedSweep:
    """A sweep as its journal tells it.

    Attributes:
        about: Of its first record: the sections of the spec it was made with, the dataset's digest, the aims.
        records: All others.
    """

    about: Mapping[str, Any]
    records: Sequence[Record]
    state: SweepState

    @property
    def complete(self) -> bool:
        """Whether every trial ended."""
        return self.state.ended == self.state.total


def read_sweep(path: Path) -> RecordedSweep:
    """Reads a journal without touching it; a torn last line is left out.

    Raises:
        StageError: If it is damaged, or was written by an earlier release.
    """
    whole = path.read_bytes().rpartition(b"\n")[0]
    first, *records = parse_records(path, whole) or [{}]
    about = first.get("about")
    if not about:
        raise StageError(f"{path} says nothing about its sweep; it is empty, or of an earlier release.")
    state = SweepState(SweepFacts.from_json(about))
    for record in records:
        state.apply(record)
    return RecordedSweep(about, records, state)


def can_extend(earlier: RecordedSweep, about: Mapping[str, Any]) -> bool:
    """Whether a sweep asks the same as a complete earlier one, of which it wants more trials."""
    if about["tune"]["scheduler"] == "pbt" or not earlier.complete:
        return False
    same = all(plain(earlier.about[name]) == plain(about[name]) for name in ("task", "seed", "model", "train"))
    return (
        same
        and _question(earlier.about["tune"]) == _question(about["tune"])
        and (earlier.about["trials"] < about["trials"])
    )


def _question(tune: Mapping[str, Any]) -> dict[str, Any]:
    return {name: plain(value) for name, value in tune.items() if name not in FREE_TO_CHANGE}


def records_to_extend(earlier: RecordedSweep) -> list[Record]:
    """The records of an earlier sweep that a longer one begins with: everything about the trials it searched."""
    count = earlier.about["trials"]
    return [record for record in earlier.records if record.get("trial", count) < count or record["kind"] == "observe"]


def is_comparable(earlier: RecordedSweep, about: Mapping[str, Any]) -> bool:
    """Whether trials of an earlier sweep measured the same: task, seed and first aim."""
    return earlier.about["aims"][0] == about["aims"][0] and all(
        earlier.about[name] == about[name] for name in ("task", "seed")
    )


def observe_trials(earlier: RecordedSweep, plan: SweepPlan, source: str) -> tuple[list[Record], int]:
    """The trials of an earlier sweep that lie in a new one's space, as records of it; and how many do not."""
    records, outside = [], 0
    for trial in earlier.state.searched():
        if trial.state == "failed" or not trial.reports:
            continue
        config = translate(earlier, trial, plan.space)
        if config is None:
            outside += 1
        else:
            records.append(_observe(earlier.state, trial, plan, config, f"{source} trial {trial.number}"))
    return records, outside


def _observe(state: SweepState, trial: Trial, plan: SweepPlan, config: dict[str, Any], source: str) -> Record:
    values = {
        epoch: metrics[state.facts.metric] for epoch, metrics in sorted(trial.reports.items()) if epoch <= plan.epochs
    }
    metrics = state.metrics(trial)
    complete = trial.state in ENDED and all(aim.name in metrics for aim in plan.aims)
    return {
        "kind": "observe",
        "config": config,
        "values": values,
        # A run that ended sooner than the new sweep's trials do counts as one that was stopped there.
        "state": "finished" if max(values) >= plan.epochs else "stopped",
        "finals": [metrics[aim.name] for aim in plan.aims] if complete else [],
        "source": source,
    }


def translate(earlier: RecordedSweep, trial: Trial, space: SearchSpace) -> dict[str, Any] | None:
    """The configuration of `space` that gives the same model and training as an earlier trial's; None without one."""
    try:
        model = _MODEL.validate_python(earlier.about["model"])
        train = TrainConfig.model_validate(earlier.about["train"])
        wanted = _sections(*apply_config(model, train, trial.config))
        config = space.fill(lambda name, item: _value_of(name, item, wanted))
        found = _sections(*apply_config(space.model, space.train, config))
    except (ValidationError, MissingField):
        return None
    return config if found == wanted and space.contains(config) else None


def _sections(model: ModelConfig, train: TrainConfig) -> dict[str, Any]:
    trained = train.model_dump(mode="json")
    return {
        "model": model.model_dump(mode="json"),
        "train": {name: value for name, value in trained.items() if name not in NOT_COMPARED},
    }


def _value_of(name: str, item: Distribution, sections: Mapping[str, Any]) -> Any:
    """What an entry would have to be for these sections; of whole sections the first that agrees in what it names.

    Raises:
        MissingField: If nothing of the entry agrees.
    """
    value = look_up(sections, name)
    if not isinstance(value, Mapping):
        return value
    for known in item.values:
        if isinstance(known, Mapping) and all(value.get(key) == plain(part) for key, part in known.items()):
            return known
    raise MissingField(name)


def observe_runs(
    runs: Sequence[Mapping[str, Any]], plan: SweepPlan, metric: str, names: Mapping[str, str], source: str
) -> tuple[list[Record], int]:
    """Past MLflow runs that lie in the space, as records; and how many do not.

    Args:
        runs: {"params": {name: text}, "metrics": {name: value}} each.
        metric: The runs' name of the first aim.
        names: Spec field -> the runs' name of the parameter, where it is another.
    """
    records, outside = [], 0
    for run in runs:
        config = _config_of(run["params"], plan.space, names)
        if config is None or metric not in run["metrics"]:
            outside += 1
            continue
        values = {plan.epochs: run["metrics"][metric]}
        finals = [run["metrics"][metric]] if len(plan.aims) == 1 else []
        records.append(
            {"kind": "observe", "config": config, "values": values, "state": "finished", "finals": finals,
             "source": f"{source} {run.get('name', '')}".strip()}
        )  # fmt: skip
    return records, outside


def _config_of(params: Mapping[str, str], space: SearchSpace, names: Mapping[str, str]) -> dict[str, Any] | None:
    def value(name: str, item: Distribution) -> Any:
        text = params.get(names.get(name, name))
        if text is None:
            raise MissingField(name)
        try:
            return json.loads(text)
        except ValueError:
            return text

    try:
        config = space.fill(value)
    except MissingField:
        return None
    return config if space.contains(config) else None
