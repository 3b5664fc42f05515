"""A sweep in plain values: what `penstock tune show --json` prints and the page draws."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from components.tune.luck import chance_of_luck
from components.tune.state import SweepState, Trial

if TYPE_CHECKING:
    from components.tune.history import RecordedSweep


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
        "repeats": describe_repeats(state, winner) if winner else None,
        "trials": [describe_trial(trial, state) for trial in state.in_order()],
    }


def search_in_words(tune: dict[str, Any]) -> str:
    """`bayesian (tpe) with asha`."""
    sampler = f" ({tune['sampler']})" if tune["search"] == "bayesian" else ""
    scheduler = f" with {tune['scheduler']}" if tune["scheduler"] else ""
    return f"{tune['search']}{sampler}{scheduler}"


def describe_repeats(state: SweepState, winner: Trial) -> dict[str, Any] | None:
    """Every finalist's scores over seeds, and the chance that the winner only seemed best; None without repeats."""
    scores = state.repeated()
    if winner.number not in scores:
        return None
    return {
        "scores": {str(number): values for number, values in scores.items()},
        "mean": sum(scores[winner.number]) / len(scores[winner.number]),
        "chance_only_seemed_best": chance_of_luck(scores, winner.number, state.facts.aims[0].sign),
    }


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
        "seed": trial.seed,
        "repeat_of": trial.repeat_of,
        "takeovers": trial.takeovers,
    }
