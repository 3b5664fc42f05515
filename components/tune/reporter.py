"""Tells the run's events and its MLflow journal what happens in a sweep."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from components.config import dotted_names
from components.context import Context
from components.tune.journal import Record
from components.tune.sweep import SweepPlan, Trial

MLFLOW_STATUS = {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}


class Reporter:
    """Listens to a sweep. Each trial is an MLflow run `tune/<number>` under the sweep's.

    Args:
        total: Trials of the sweep.
    """

    def __init__(self, context: Context, plan: SweepPlan, total: int) -> None:
        self.context, self.plan, self.total = context, plan, total
        self.ended: set[int] = set()
        self.epochs: dict[int, int] = {}
        self.begun_s, self.epochs_before = time.monotonic(), 0

    def resume(self, trials: list[Trial]) -> None:
        """Counts what an earlier start has done."""
        self.ended = {trial.number for trial in trials if trial.state != "running"}
        self.epochs = {trial.number: len(trial.reports) for trial in trials}
        self.epochs_before = self._epochs_done()

    def __call__(self, trial: Trial, record: Record) -> None:
        if trial.state != "running":
            self.ended.add(trial.number)
        if record["kind"] == "suggest":
            self._begin(trial)
        if record["kind"] == "report":
            self._report(trial, record)
        if trial.state != "running":
            self._end(trial)

    def _begin(self, trial: Trial) -> None:
        params = {**dotted_names(trial.config), "chosen_by": trial.chosen_by}
        self.context.track("params", run=f"tune/{trial.number}", params=params)
        self._trial_event(trial, {})

    def _report(self, trial: Trial, record: Record) -> None:
        run, epoch = f"tune/{trial.number}", record["epoch"]
        self.context.track("metrics", run=run, step=epoch, metrics=record["metrics"])
        self.epochs[trial.number] = len(trial.reports)
        pace = {**record["pace"], self.plan.metric: record["metrics"][self.plan.metric], "eta_s": self._eta_s()}
        # In trials, like the trial events: both move the same bar.
        self.context.event("progress", len(self.ended), self.total, pace, trial=trial.number, epoch=epoch)

    def _end(self, trial: Trial) -> None:
        run = f"tune/{trial.number}"
        self.context.track("tags", run=run, tags={"state": trial.state, "reason": trial.reason or ""})
        self.context.track("status", run=run, status=MLFLOW_STATUS[trial.state])
        self._trial_event(trial, trial.best(self.plan.metric, self.plan.mode))

    def _trial_event(self, trial: Trial, metrics: Mapping[str, float]) -> None:
        more: dict[str, Any] = {"trial": trial.number, "state": trial.state, "config": trial.config}
        more |= {"chosen_by": trial.chosen_by, "epochs": len(trial.reports), "reason": trial.reason}
        self.context.event("trial", len(self.ended), self.total, metrics, **more)

    def _epochs_done(self) -> int:
        """Epochs run, or spared by a stop."""
        return sum(self.plan.epochs if number in self.ended else count for number, count in self.epochs.items())

    def _eta_s(self) -> float:
        done = self._epochs_done()
        fresh = max(1, done - self.epochs_before)
        return round((self.total * self.plan.epochs - done) * (time.monotonic() - self.begun_s) / fresh, 1)
