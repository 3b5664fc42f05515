"""A sweep in plain values: what `penstock tune show --json` prints and the page draws."""

from __future__ import annotations

from typing import Any

from components.tune.history import RecordedSweep
from components.tune.state import SweepState, Trial


def summarise(sweep: RecordedSweep) -> dict[str, Any]:
    """Every trial, the winner, the Pareto set and what was spent."""
    state, about = sweep.state, sweep.about
    winner = state.winner()
    states = [trial.state for trial in state.in_order()]
    return {
        "status": "done" if sweep.complete else "unfinished",
        "search": search_in_words(about["tune"]),
        "seed": about["seed"],
        "aims": [{"name": aim.name, "mode": aim.mode} for aim in state.facts.aims],
        "total": state.total,
        "counts": {known: states.count(known) for known in ("running", "waiting", "finished", "stopped", "failed")},
        "observed": len(state.observed),
        "best": _best(state, winner) if winner else None,
        "pareto": [trial.number for trial in state.pareto()],
        "budget": budget_of(state),
        "trials": [describe_trial(trial, state) for trial in state.in_order()],
    }


def search_in_words(tune: dict[str, Any]) -> str:
    """`bayesian (tpe) with asha`."""
    sampler = f" ({tune['sampler']})" if tune["search"] == "bayesian" else ""
    scheduler = f" with {tune['scheduler']}" if tune["scheduler"] else ""
    return f"{tune['search']}{sampler}{scheduler}"


def _best(state: SweepState, winner: Trial) -> dict[str, Any]:
    metrics = state.metrics(winner)
    aims = {aim.name: metrics[aim.name] for aim in state.facts.aims}
    return {"trial": winner.number, "config": winner.config, "aims": aims, "split": "validation"}


def budget_of(state: SweepState) -> dict[str, float]:
    """Epochs trained, epochs that stops spared, and seconds of all trials together."""
    trials = state.in_order()
    trained = sum(len(trial.reports) for trial in trials)
    spared = sum(state.facts.epochs - len(trial.reports) for trial in trials if trial.state == "stopped")
    seconds = sum(max(0.0, trial.ended_s - trial.started_s) for trial in trials if trial.ended_s)
    return {"epochs": trained, "spared": spared, "seconds": round(seconds, 1)}


def describe_trial(trial: Trial, state: SweepState) -> dict[str, Any]:
    """One trial; `metrics` are those of its best epoch, `curve` the first aim by epoch."""
    metric = state.facts.metric
    return {
        "trial": trial.number,
        "state": trial.state,
        "config": trial.config,
        "chosen_by": trial.chosen_by,
        "metrics": state.metrics(trial),
        "epochs": len(trial.reports),
        "curve": {epoch: values[metric] for epoch, values in sorted(trial.reports.items())},
        "seconds": round(max(0.0, trial.ended_s - trial.started_s), 3) if trial.ended_s else None,
        "failures": trial.failures,
        "reason": trial.reason,
        "takeovers": trial.takeovers,
    }
