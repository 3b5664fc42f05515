"""What became of a sweep, folded from its journal: nothing here decides or writes, so anyone may read a sweep with it.

state = SweepState(SweepFacts.from_json(records[0]["about"]))
for record in records: state.apply(record)
state.winner()
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from components.tune.aims import Aim, pareto_set, pick
from components.tune.journal import Record

State = Literal["running", "waiting", "finished", "stopped", "failed"]
ENDED = ("finished", "stopped", "failed")


@dataclass(frozen=True)
class SweepFacts:
    """What a reader must know to make sense of the records.

    Attributes:
        aims: The first decides which epoch is a trial's best.
        epochs: Longest run of a trial.
        trials: Configurations that are tried.
        repeats, finalists: Seeds over which so many of the best are trained again; 0 for none.
        folds: Parts of a cross-validation; 0 without one. A report is then the mean over the folds so far.
        max_drop, prefer: The rule that picks one of several best (`tune.choose`).
    """

    aims: tuple[Aim, ...]
    epochs: int
    trials: int
    repeats: int = 0
    finalists: int = 0
    folds: int = 0
    max_drop: float = 0.0
    prefer: str | None = None

    @property
    def metric(self) -> str:
        return self.aims[0].name

    @property
    def mode(self) -> Literal["min", "max"]:
        return self.aims[0].mode

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> SweepFacts:
        known = {name: value for name, value in values.items() if name in cls.__dataclass_fields__}
        return cls(**{**known, "aims": tuple(Aim(**aim) for aim in values["aims"])})


@dataclass(slots=True)
class Trial:
    """One configuration and what became of it.

    Attributes:
        reports: Validation metrics by epoch (from 1).
        measured: What was measured of its network.
        reason: Why it failed last; it may have gone on since.
        failures: Times it failed.
        losses: Machines that were lost under it since its last report.
        seed: Of its training; None is the spec's.
        repeat_of: The finalist that it repeats with another seed.
        takeovers: Where it took over from another trial: {"epoch", "source", "config"} (population based training).
    """

    number: int
    config: Mapping[str, Any]
    chosen_by: str
    reports: dict[int, Mapping[str, float]] = field(default_factory=dict)
    measured: dict[str, float] = field(default_factory=dict)
    state: State = "running"
    reason: str | None = None
    failures: int = 0
    losses: int = 0
    seed: int | None = None
    repeat_of: int | None = None
    takeovers: list[dict[str, Any]] = field(default_factory=list)
    started_s: float = 0.0
    ended_s: float = 0.0


class SweepState:
    """All trials of a sweep by now."""

    def __init__(self, facts: SweepFacts) -> None:
        self.facts = facts
        self.trials: dict[int, Trial] = {}
        self.finalists: list[int] | None = None
        """Trials that are repeated over seeds, best first; None until the search has ended."""
        self.observed: list[Record] = []
        """What earlier sweeps or runs were told to this one."""
        self.open_exploits: list[dict[str, Any]] = []
        """Take-overs that were decided and whose checkpoints are not known to be in their place."""

    @property
    def total(self) -> int:
        """Trials of the whole sweep."""
        repeated = self.facts.finalists if self.finalists is None else len(self.finalists)
        return self.facts.trials + self.facts.repeats * min(repeated, self.facts.trials)

    @property
    def ended(self) -> int:
        return sum(trial.state in ENDED for trial in self.trials.values())

    def in_order(self) -> list[Trial]:
        """All trials by number."""
        return [self.trials[number] for number in sorted(self.trials)]

    def searched(self) -> list[Trial]:
        """The trials of the search, without those that only repeat one."""
        return [trial for trial in self.in_order() if trial.repeat_of is None]

    def best_first(self) -> list[Trial]:
        """Rated trials by the first aim, the earlier of equals first."""
        first = self.facts.aims[0]
        return sorted(self.rated(), key=lambda trial: (-first.sign * self.metrics(trial)[first.name], trial.number))

    def repeated(self) -> dict[int, list[float]]:
        """The first aim over seeds, by finalist; those whose repeats all failed are not in it."""
        scores: dict[int, list[float]] = {}
        for trial in self.in_order():
            if trial.repeat_of is not None and trial.state == "finished" and trial.reports:
                scores.setdefault(trial.repeat_of, []).append(self.metrics(trial)[self.facts.metric])
        return scores

    def metrics(self, trial: Trial) -> dict[str, float]:
        """See `best_metrics`."""
        return best_metrics(trial, self.facts)

    def rated(self) -> list[Trial]:
        """Trials that may win."""
        return [trial for trial in self.searched() if self.is_rated(trial)]

    def is_rated(self, trial: Trial) -> bool:
        """Whether a trial may win: it ended without failing, and every aim of it is known."""
        if trial.state not in ("finished", "stopped") or not trial.reports:
            return False
        if self.facts.folds and len(trial.reports) < self.facts.folds:
            return False
        known = self.metrics(trial)
        return all(aim.name in known for aim in self.facts.aims)

    def pareto(self) -> list[Trial]:
        """Trials that none beats in one aim without losing in another."""
        rated = self.rated()
        return [rated[place] for place in pareto_set([self.metrics(trial) for trial in rated], self.facts.aims)]

    def winner(self) -> Trial | None:
        """The best trial, or the one that the rule picks of several best; None if all failed. After repeats, the
        finalist with the best mean over seeds."""
        rated, means = self.rated(), {trial: sum(values) / len(values) for trial, values in self.repeated().items()}
        if means:
            sign = self.facts.aims[0].sign
            return self.trials[max(means, key=lambda number: (sign * means[number], -number))]
        if not rated:
            return None
        points = [self.metrics(trial) for trial in rated]
        return rated[pick(points, self.facts.aims, self.facts.max_drop, self.facts.prefer)]

    def apply(self, record: Record) -> None:
        """Takes over one record."""
        change = getattr(self, f"_on_{record['kind']}", None)
        if change is not None:
            change(record)

    def _on_observe(self, record: Record) -> None:
        self.observed.append(record)

    def _on_suggest(self, record: Record) -> None:
        number = record["trial"]
        more: Any = {name: record.get(name) for name in ("seed", "repeat_of")}
        self.trials[number] = Trial(number, record["config"], record["chosen_by"], started_s=record["time"], **more)

    def _on_finalists(self, record: Record) -> None:
        self.finalists = record["trials"]

    def _on_measure(self, record: Record) -> None:
        self.trials[record["trial"]].measured = record["metrics"]

    def _on_report(self, record: Record) -> None:
        trial = self.trials[record["trial"]]
        trial.reports[record["epoch"]] = record["metrics"]
        trial.losses = 0
        if record.get("waits"):
            trial.state = "waiting"
        elif not record["goes_on"]:
            trial.state, trial.ended_s = "stopped", record["time"]

    def _on_retry(self, record: Record) -> None:
        trial = self.trials[record["trial"]]
        trial.reason = record["reason"]
        if record.get("lost"):
            trial.losses += 1
        else:
            trial.failures += 1

    def _on_end(self, record: Record) -> None:
        trial = self.trials[record["trial"]]
        trial.failures += record["state"] == "failed"
        trial.state, trial.ended_s = record["state"], record["time"]
        trial.reason = record["reason"] or trial.reason

    def _on_generation(self, record: Record) -> None:
        self.open_exploits = record["exploits"]
        for exploit in record["exploits"]:
            trial = self.trials[exploit["trial"]]
            trial.config = exploit["config"]
            trial.takeovers.append({"epoch": record["epoch"], "source": exploit["source"], "config": exploit["config"]})
        for trial in self.trials.values():
            if trial.state == "waiting":
                trial.state = "running"

    def _on_ready(self, record: Record) -> None:
        self.open_exploits = []


def best_metrics(trial: Trial, facts: SweepFacts) -> dict[str, float]:
    """Metrics of a trial's best epoch, the earlier one of equals, and what was measured; empty without a report."""
    first, epochs = facts.aims[0], sorted(trial.reports)
    if not epochs:
        return dict(trial.measured)
    best = max(epochs, key=lambda epoch: first.sign * trial.reports[epoch][first.name])
    if facts.folds:
        best = epochs[-1]  # the mean over the most folds
    return {**trial.reports[best], **trial.measured}
