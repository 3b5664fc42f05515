"""Tells the run's events and its MLflow journal what happens in a sweep."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from components.config import dotted_names
from components.context import Context
from components.tune.journal import Record
from components.tune.state import ENDED, SweepFacts, Trial, best_metrics

MLFLOW_STATUS = {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}


class Reporter:
    """Listens to a sweep. Each trial is an MLflow run `tune/<number>` under the sweep's.

    Args:
        total: Trials of the sweep.
    """

    def __init__(self, context: Context, facts: SweepFacts, total: int) -> None:
        self.context, self.facts, self.total = context, facts, total
        self.states: dict[int, str] = {}
        self.best: tuple[float, int] | None = None
        self.epochs: dict[int, int] = {}
        self.begun_s, self.epochs_before = time.monotonic(), 0

    def resume(self, trials: list[Trial]) -> None:
        """Counts what an earlier start has done."""
        for trial in trials:
            self._note(trial)
        self.epochs = {trial.number: len(trial.reports) for trial in trials}
        self.epochs_before = self._epochs_done()

    @property
    def ended(self) -> set[int]:
        """Trials that ended."""
        return {number for number, state in self.states.items() if state in ENDED}

    def _note(self, trial: Trial) -> None:
        """Keeps what the standing is told from."""
        self.states[trial.number] = trial.state
        value = trial_value(trial, self.facts)
        if value is not None and trial.state != "failed":
            sign = self.facts.aims[0].sign
            if self.best is None or sign * value > sign * self.best[0]:
                self.best = (value, trial.number)

    def standing(self) -> str:
        """`best 0.93 (trial 4), 2 running, 3 stopped early, 1 failed`."""
        states = list(self.states.values())
        counts = {"running": "running", "waiting": "waiting", "stopped": "stopped early", "failed": "failed"}
        parts = [f"{states.count(state)} {text}" for state, text in counts.items() if state in states]
        best = [f"best {self.best[0]:.4g} (trial {self.best[1]})"] if self.best else []
        return ", ".join([*best, *parts])

    def __call__(self, trial: Trial, record: Record) -> None:
        self._note(trial)
        if record["kind"] == "suggest":
            self._begin(trial)
        if record["kind"] == "measure":
            self.context.track("metrics", run=f"tune/{trial.number}", step=0, metrics=record["metrics"])
        if record["kind"] == "report":
            self._report(trial, record)
        if record["kind"] == "retry":
            self.context.warn(f"Trial {trial.number} failed ({trial.reason}) and starts again from its checkpoint.")
        if trial.state in ENDED:
            self._end(trial)

    def tell_earlier(self, trials: list[Trial]) -> None:
        """Puts the trials that an earlier sweep ran into this run's MLflow, so that it holds the whole sweep."""
        for trial in trials:
            self._track_params(trial)
            for epoch, metrics in sorted(trial.reports.items()):
                self.context.track("metrics", run=f"tune/{trial.number}", step=epoch, metrics=metrics)
            self._end(trial)

    def _track_params(self, trial: Trial) -> None:
        params = {**dotted_names(trial.config), "chosen_by": trial.chosen_by}
        self.context.track("params", run=f"tune/{trial.number}", params=params)

    def _begin(self, trial: Trial) -> None:
        self._track_params(trial)
        self._trial_event(trial, {})

    def _report(self, trial: Trial, record: Record) -> None:
        run, epoch = f"tune/{trial.number}", record["epoch"]
        self.context.track("metrics", run=run, step=epoch, metrics=record["metrics"])
        self.epochs[trial.number] = len(trial.reports)
        pace = {**record["pace"], self.facts.metric: record["metrics"][self.facts.metric], "eta_s": self._eta_s()}
        # In trials, like the trial events: both move the same bar.
        more = {**self._place(trial), "epoch": epoch}
        self.context.event("progress", len(self.ended), self.total, pace, **more)

    def _end(self, trial: Trial) -> None:
        run = f"tune/{trial.number}"
        self.context.track("tags", run=run, tags={"state": trial.state, "reason": trial.reason or ""})
        self.context.track("status", run=run, status=MLFLOW_STATUS[trial.state])
        self._trial_event(trial, best_metrics(trial, self.facts))

    def _trial_event(self, trial: Trial, metrics: Mapping[str, float]) -> None:
        more = {**self._place(trial), "state": trial.state, "config": trial.config}
        more |= {"chosen_by": trial.chosen_by, "epochs": len(trial.reports), "reason": trial.reason}
        self.context.event("trial", len(self.ended), self.total, metrics, **more)

    def _place(self, trial: Trial) -> dict[str, Any]:
        """What every event of a trial says, so that each can be drawn by itself."""
        aim = {"metric": self.facts.metric, "mode": self.facts.mode, "epochs_total": self.facts.epochs}
        return {"trial": trial.number, **aim, "standing": self.standing()}

    def _epochs_done(self) -> int:
        """Epochs run, or spared by a stop."""
        ended = self.ended
        return sum(self.facts.epochs if number in ended else count for number, count in self.epochs.items())

    def _eta_s(self) -> float:
        done = self._epochs_done()
        fresh = max(1, done - self.epochs_before)
        return round((self.total * self.facts.epochs - done) * (time.monotonic() - self.begun_s) / fresh, 1)


def trial_value(trial: Trial, facts: SweepFacts) -> float | None:
    """The first aim of a trial's best epoch; None before its first report."""
    return best_metrics(trial, facts).get(facts.metric)
