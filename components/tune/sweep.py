"""The decisions of a sweep. No Ray in here, so a test drives it with plain calls.

    trial = sweep.next_trial()                    unfinished trials of an earlier start first, then new suggestions
    sweep.report(trial.number, epoch, metrics)    False: the trial is stopped, waits, or had its last epoch
    sweep.finish(trial.number)  or  sweep.fail(trial.number, reason)    it ended by itself

Each call writes the journal before it returns. A restart folds the journal back into this state, feeding the stop rule
every report in its order, so that at concurrency 1 the sweep goes on as if nothing had happened.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from components.tune.aims import Aim
from components.tune.config import TuneConfig
from components.tune.journal import Journal, Record
from components.tune.pbt import Exploit, Member, plan_generation
from components.tune.search import Observation, count_trials, suggest
from components.tune.space import SearchSpace
from components.tune.state import ENDED, SweepFacts, SweepState, Trial
from components.tune.stopping import make_stop_rule

MAX_LOSSES = 5
"""Machines that a trial may lose without a new report in between."""


@dataclass(frozen=True)
class SweepPlan:
    """What is searched how.

    Attributes:
        space: What may be tried.
        seed: Governs the suggestions.
        epochs: Longest run of a trial.
        aims: Metrics that decide, the first one on epochs and stops.
    """

    tune: TuneConfig
    space: SearchSpace
    seed: int
    epochs: int
    aims: tuple[Aim, ...]

    @property
    def facts(self) -> SweepFacts:
        tune = self.tune
        return SweepFacts(
            aims=self.aims,
            epochs=self.epochs,
            trials=count_trials(tune, self.space),
            repeats=tune.repeats or 0,
            finalists=tune.finalists if tune.repeats else 0,
            folds=tune.folds or 0,
            max_drop=tune.choose.max_drop,
            prefer=tune.choose.prefer,
        )


Listener = Callable[[Trial, Record], None]
Inherit = Callable[[list[Exploit]], None]
"""Puts the checkpoints of take-overs in their place, from the sources to the trials; doing so twice does no harm."""


class Sweep(SweepState):
    """See the top of this file.

    Args:
        listener: Told of every record of a trial, once it is on the disk.
        inherit: Called while no trial of the population runs.
    """

    def __init__(
        self,
        plan: SweepPlan,
        journal: Journal,
        listener: Listener = lambda trial, record: None,
        inherit: Inherit = lambda exploits: None,
    ) -> None:
        super().__init__(plan.facts)
        self.plan, self.journal, self.listener, self.inherit = plan, journal, listener, inherit
        self.stop_rule = make_stop_rule(plan.tune, plan.epochs, self.facts.mode)
        for record in journal.read():
            self._replay(record)
        self.to_resume: list[int] = []
        self.requeue()
        self._complete_generation()

    def retell(self) -> None:
        """Tells the last record again: its writer may have been killed before it could. Twice is better than never."""
        if self.trials:
            self._tell(self.journal.last)

    @property
    def running(self) -> int:
        """Trials that were handed out and have neither ended nor wait."""
        return sum(trial.state == "running" for trial in self.trials.values()) - len(self.to_resume)

    def requeue(self) -> None:
        """Lets trials that were handed out but did not end be handed out again: nobody runs them any more."""
        self.to_resume = [trial.number for trial in self.in_order() if trial.state == "running"]

    def next_trial(self) -> Trial | None:
        """The next trial to run; None when all have been handed out, or what is left waits for those that run."""
        if self.to_resume:
            return self.trials[self.to_resume.pop(0)]
        if len(self.trials) < self.facts.trials:
            return self._suggest(len(self.trials))
        return self._next_repeat() if self.facts.repeats else None

    def _next_repeat(self) -> Trial | None:
        """The next finalist with another seed, once every trial of the search has ended."""
        if any(trial.state not in ENDED for trial in self.searched()):
            return None
        if self.finalists is None:
            best = self.best_first()[: self.facts.finalists]
            self._record("finalists", trials=[trial.number for trial in best])
        number, place = len(self.trials), len(self.trials) - self.facts.trials
        if not self.finalists or number >= self.total:
            return None
        finalist = self.trials[self.finalists[place % len(self.finalists)]]
        # Not the seed that all trials share: what chose the finalists must not judge them.
        seed = self.plan.seed + 1 + place // len(self.finalists)
        values = {"config": dict(finalist.config), "chosen_by": "repeat", "seed": seed, "repeat_of": finalist.number}
        self._record("suggest", trial=number, **values)
        return self.trials[number]

    def measure(self, number: int, metrics: Mapping[str, float]) -> None:
        """Takes what was measured of the trial's network; the first measurement counts."""
        if not self.trials[number].measured:
            self._record("measure", trial=number, metrics=dict(metrics))

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
        return trial.state == "running" and number not in self.to_resume

    def _take_report(self, trial: Trial, epoch: int, metrics: Mapping[str, float], pace: Mapping[str, float]) -> None:
        bad = next((name for name in (self.facts.metric, *metrics) if not math.isfinite(metrics[name])), None)
        if bad:
            # From the same checkpoint it would come to the same value: no retry.
            self._end(trial.number, "failed", f"{bad} is {metrics[bad]} at epoch {epoch}")
            return
        goes_on = trial.repeat_of is not None or self.stop_rule.goes_on(trial.number, epoch, metrics[self.facts.metric])
        waits = self._waits_after(epoch)
        values = {"metrics": dict(metrics), "pace": dict(pace), **({"waits": True} if waits else {})}
        self._record("report", trial=trial.number, epoch=epoch, goes_on=goes_on, **values)
        self._complete_generation()

    def finish(self, number: int) -> None:
        """The trial ran to its end."""
        if self.trials[number].state == "running":
            self._end(number, "finished", None)

    def fail(self, number: int, reason: str, lost: bool = False) -> None:
        """The trial broke. It is handed out again while it has retries left; the others go on in any case.

        A machine that was `lost` is not the trial's fault: it costs no retry, as long as the trial gets any further.
        """
        trial = self.trials[number]
        if trial.state != "running" or number in self.to_resume:
            return
        if lost and trial.losses < MAX_LOSSES:
            self._record("retry", trial=number, reason=reason, lost=True)
            self.to_resume.append(number)
        elif trial.failures < self.plan.tune.retries:
            self._record("retry", trial=number, reason=reason)
            self.to_resume.append(number)
        else:
            self._end(number, "failed", reason)

    def _end(self, number: int, state: Literal["finished", "failed"], reason: str | None) -> None:
        self._record("end", trial=number, state=state, reason=reason)
        self._complete_generation()

    def _suggest(self, number: int) -> Trial:
        history: list[Observation] = []
        if self.plan.tune.search == "bayesian":  # no other search looks at it, and a sweep may be long
            history += map(observation_of, self.observed)
            history += (self._observation(trial) for trial in self.searched() if trial.state != "failed")
        suggestion = suggest(self.plan.tune, self.plan.space, self.plan.seed, number, history, self.plan.aims)
        self._record("suggest", trial=number, config=dict(suggestion.config), chosen_by=suggestion.chosen_by)
        return self.trials[number]

    def _observation(self, trial: Trial) -> Observation:
        values = {epoch: metrics[self.facts.metric] for epoch, metrics in trial.reports.items()}
        known = self.metrics(trial)
        finals = tuple(known[aim.name] for aim in self.plan.aims) if self.is_rated(trial) else ()
        return Observation(trial.config, values, "running" if trial.state == "waiting" else trial.state, finals)  # type: ignore[arg-type]

    def _waits_after(self, epoch: int) -> bool:
        """Whether a generation of the population ends with this epoch."""
        if self.plan.tune.scheduler != "pbt" or epoch >= self.plan.epochs:
            return False
        return epoch % self.plan.tune.pbt.interval_epochs == 0

    def _complete_generation(self) -> None:
        """Decides the take-overs once the last member of the population waits, and has their checkpoints moved."""
        if self.plan.tune.scheduler != "pbt":
            return
        waiting = [trial for trial in self.in_order() if trial.state == "waiting"]
        complete = len(self.trials) == self.total and all(trial.state != "running" for trial in self.trials.values())
        if waiting and complete:
            # Members may be at different epochs if some were resumed: those that are furthest behind go on alone.
            epoch = min(max(trial.reports) for trial in waiting)
            sign, name = self.plan.aims[0].sign, self.facts.metric
            members = [Member(trial.number, trial.config, sign * trial.reports[epoch][name]) for trial in waiting]
            exploits = plan_generation(self.plan.tune.pbt, self.plan.space, self.plan.seed, epoch, members)
            self._record("generation", epoch=epoch, exploits=[vars(exploit) for exploit in exploits])
            self.to_resume += [trial.number for trial in waiting]
        if self.open_exploits:
            self.inherit([Exploit(**exploit) for exploit in self.open_exploits])
            self._record("ready")

    def _record(self, kind: str, **values: Any) -> None:
        record = self.journal.append(kind, **values)
        self.apply(record)
        self._tell(record)

    def _tell(self, record: Record) -> None:
        if "trial" in record:
            self.listener(self.trials[record["trial"]], record)

    def _replay(self, record: Record) -> None:
        """Takes over a record of an earlier start. The stop rule is told too, but what was decided stays decided."""
        if record["kind"] == "report" and self.trials[record["trial"]].repeat_of is None:
            self.stop_rule.goes_on(record["trial"], record["epoch"], record["metrics"][self.facts.metric])
        self.apply(record)


def observation_of(record: Record) -> Observation:
    """What a record of an earlier sweep or run tells the search."""
    values = {int(epoch): value for epoch, value in record["values"].items()}
    return Observation(record["config"], values, record["state"], tuple(record["finals"]))
