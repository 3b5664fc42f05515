"""How much each parameter mattered: the share of the metric's variance that it explains alone."""

from __future__ import annotations

from components.tune.distributions import parse_item
from components.tune.history import RecordedSweep

FEWEST_TRIALS = 4


def parameter_importance(sweep: RecordedSweep) -> dict[str, float]:
    """Shares by name, the largest first, adding up to 1; empty if there are too few trials or all came to the same.

    Only parameters that every trial has are told apart; those of one architecture alone are not. Trials that were
    stopped count with their best epoch.

    Source: Hutter et al. 2014 (fANOVA), https://proceedings.mlr.press/v32/hutter14.html
    """
    import optuna

    from components.tune.search import distribution_of, to_optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    state = sweep.state
    rated = [trial for trial in state.searched() if trial.state != "failed" and trial.reports]
    values = [state.metrics(trial)[state.facts.metric] for trial in rated]
    if len(rated) < FEWEST_TRIALS or max(values) == min(values):
        return {}
    space = {name: parse_item(name, item) for name, item in sweep.about["tune"]["space"].items()}
    names = [name for name in space if all(name in trial.config for trial in rated)]
    study = optuna.create_study(direction="maximize" if state.facts.mode == "max" else "minimize")
    for trial, value in zip(rated, values, strict=True):
        study.add_trial(
            optuna.trial.create_trial(
                params={name: to_optuna(space[name], trial.config[name]) for name in names},
                distributions={name: distribution_of(space[name]) for name in names},
                value=value,
            )
        )
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    return dict(optuna.importance.get_param_importances(study, evaluator=evaluator)) if names else {}
