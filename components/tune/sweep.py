"""The state of a sweep: what was suggested, reported and decided. No Ray in here, so a test drives it with plain calls.

    trial = sweep.next_trial()                    unfinished trials of an earlier start first, then new suggestions
    sweep.report(trial.number, epoch, metrics)    False: the trial is stopped, or had its last epoch
    sweep.finish(trial.number)  or  sweep.fail(trial.number, reason)    it ended by itself

Each call writes the journal before it returns. A restart folds the journal back into this state, feeding the stop rule
every report in its order, so that at concurrency 1 the sweep goes on as if nothing had happened.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from components.tune.asha import make_stop_rule
from components.tune.config import TuneConfig
from components.tune.journal import Journal, Record
from components.tune.search import Observation, count_trials, suggest
from components.tune.space import SearchSpace

State = Literal["running", "finished", "stopped", "failed"]
Mode = Literal["min", "max"]


@dataclass(frozen=True)
class SweepPlan:
    """What is searched how.

    Attributes:
        space: What may be tried.
        seed: Governs the suggestions.
        epochs: Longest run of a trial.
        metric: Name of the deciding validation metric.
    """

    tune: TuneConfig
    space: SearchSpace
    seed: int
    epochs: int
    metric: str
    mode: Mode


@dataclass
class Trial:
    """One configuration and what became of it. `reports` holds the validation metrics by epoch (from 1)."""

    number: int
    config: Mapping[str, Any]
    chosen_by: str
    reports: dict[int, Mapping[str, float]] = field(default_factory=dict)
    state: State = "running"
    reason: str | None = None
    started_s: float = 0.0
    ended_s: float = 0.0

    def best(self, metric: str, mode: Mode) -> Mapping[str, float]:
        """Metrics of the epoch best by `metric`, the earlier one of equals; empty without a report."""
        sign = 1 if mode == "max" else -1
        epochs = sorted(self.reports)
        return self.reports[max(epochs, key=lambda epoch: sign * self.reports[epoch][metric])] if epochs else {}


Listener = Callable[[Trial, Record], None]


class Sweep:
    """See the top of this file.

    Args:
        listener: Told of every record and the trial it belongs to, once it is on the disk.
    """

    def __init__(self, plan: SweepPlan, journal: Journal, listener: Listener = lambda trial, record: None) -> None:
        self.plan, self.journal, self.listener = plan, journal, listener
        self.total = count_trials(plan.tune, plan.space)
        self.trials: dict[int, Trial] = {}
        self.stop_rule = make_stop_rule(plan.tune, plan.epochs, plan.mode)
        for record in journal.records:
            self._apply(record)
        self.to_resume: list[int] = []
        self.requeue()

    def retell(self) -> None:
        """Tells the last record again: its writer may have been killed before it could. Twice is better than never."""
        if self.trials:
            self._tell(self.journal.records[-1])

    @property
    def running(self) -> int:
        """Trials that were handed out and have not ended."""
        return sum(trial.state == "running" for trial in self.trials.values()) - len(self.to_resume)

    @property
    def ended(self) -> int:
        return sum(trial.state != "running" for trial in self.trials.values())

    def requeue(self) -> None:
        """Lets trials that were handed out but did not end be handed out again: nobody runs them any more."""
        self.to_resume = [trial.number for trial in self.in_order() if trial.state == "running"]

    def next_trial(self) -> Trial | None:
        """The next trial to run, or None when all have been handed out."""
        if self.to_resume:
            return self.trials[self.to_resume.pop(0)]
        return self._suggest(len(self.trials)) if len(self.trials) < self.total else None

    def report(
        self, number: int, epoch: int, metrics: Mapping[str, float], pace: Mapping[str, float] | None = None
    ) -> bool:
        """Takes the validation metrics of an epoch and says whether the trial goes on.

        `pace` (loss, samples_per_s) is for those who watch. An epoch that is known already (its trial was resumed from
        an older checkpoint) has its decision already.
        """
        trial = self.trials[number]
        if trial.state == "running" and epoch not in trial.reports:
            self._take_report(trial, epoch, metrics, pace or {})
        if trial.state == "running" and epoch >= self.plan.epochs:
            self.finish(number)
        return trial.state == "running"

    def _take_report(self, trial: Trial, epoch: int, metrics: Mapping[str, float], pace: Mapping[str, float]) -> None:
        bad = next((name for name in (self.plan.metric, *metrics) if not math.isfinite(metrics[name])), None)
        if bad:
            self.fail(trial.number, f"{bad} is {metrics[bad]} at epoch {epoch}")
            return
        goes_on = self.stop_rule.goes_on(trial.number, epoch, metrics[self.plan.metric])
        values = {"metrics": dict(metrics), "pace": dict(pace)}
        self._record("report", trial=trial.number, epoch=epoch, goes_on=goes_on, **values)

    def finish(self, number: int) -> None:
        """The trial ran to its end."""
        if self.trials[number].state == "running":
            self._record("end", trial=number, state="finished", reason=None)

    def fail(self, number: int, reason: str) -> None:
        """The trial broke; the others go on."""
        if self.trials[number].state == "running":
            self._record("end", trial=number, state="failed", reason=reason)

    def winner(self) -> Trial | None:
        """The trial with the best validation metric, the earlier one of equals; None if all failed."""
        metric, mode = self.plan.metric, self.plan.mode
        sign = 1 if mode == "max" else -1
        rated = [trial for trial in self.in_order() if trial.state in ("finished", "stopped") and trial.reports]
        return max(rated, key=lambda trial: sign * trial.best(metric, mode)[metric], default=None)

    def in_order(self) -> list[Trial]:
        """All trials by number."""
        return [self.trials[number] for number in sorted(self.trials)]

    def _suggest(self, number: int) -> Trial:
        history = [self._observation(trial) for trial in self.in_order() if trial.state != "failed"]
        suggestion = suggest(self.plan.tune, self.plan.space, self.plan.seed, number, history, self.plan.mode)
        self._record("suggest", trial=number, config=dict(suggestion.config), chosen_by=suggestion.chosen_by)
        return self.trials[number]

    def _observation(self, trial: Trial) -> Observation:
        assert trial.state != "failed"
        values = {epoch: metrics[self.plan.metric] for epoch, metrics in trial.reports.items()}
        return Observation(trial.config, values, trial.state)

    def _record(self, kind: str, **values: Any) -> None:
        record = self.journal.append(kind, **values)
        self._apply(record, replay=False)
        self._tell(record)

    def _tell(self, record: Record) -> None:
        self.listener(self.trials[record["trial"]], record)

    def _apply(self, record: Record, replay: bool = True) -> None:
        """Takes over one record. On a replay the stop rule is told too, but what was decided then stays decided."""
        if record["kind"] == "suggest":
            number = record["trial"]
            self.trials[number] = Trial(number, record["config"], record["chosen_by"], started_s=record["time"])
        elif record["kind"] == "report":
            self._apply_report(record, replay)
        elif record["kind"] == "end":
            self._end(record, record["state"], record["reason"])

    def _apply_report(self, record: Record, replay: bool) -> None:
        trial = self.trials[record["trial"]]
        trial.reports[record["epoch"]] = record["metrics"]
        if replay:
            self.stop_rule.goes_on(trial.number, record["epoch"], record["metrics"][self.plan.metric])
        if not record["goes_on"]:
            self._end(record, "stopped", None)

    def _end(self, record: Record, state: State, reason: str | None) -> None:
        trial = self.trials[record["trial"]]
        trial.state, trial.reason, trial.ended_s = state, reason, record["time"]
