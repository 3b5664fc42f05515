"""What a sweep tries next. Each suggestion is a pure function of (seed, trial, history): nothing is kept in between.

So a sweep that was killed goes on with the very suggestion it would have made, from its journal alone.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from components.tune.aims import Aim
from components.tune.config import TuneConfig
from components.tune.distributions import Distribution, IntLogUniform, IntUniform, Range, plain
from components.tune.space import SearchSpace

if TYPE_CHECKING:
    import optuna

ChosenBy = Literal["given", "startup", "model", "grid", "random"]

DEFAULT_TRIALS = 10
STARTUP_SHARE = 3
"""One trial in this many is drawn at random before the model chooses."""
MAX_ASKS = 50
"""Points asked of the model before one that breaks a constraint is replaced by chance."""


@dataclass(frozen=True)
class Suggestion:
    """The configuration of one trial (dotted name -> value) and who chose it."""

    config: Mapping[str, Any]
    chosen_by: ChosenBy


@dataclass(frozen=True)
class Observation:
    """What is known of an earlier trial.

    Attributes:
        values: Deciding metric by epoch; empty if nothing was reported yet.
        state: `running` trials count as bad ones, so that trials side by side differ.
        finals: All aims of a trial that ended; empty if one is not known.
    """

    config: Mapping[str, Any]
    values: Mapping[int, float]
    state: Literal["running", "finished", "stopped"]
    finals: tuple[float, ...] = ()


def count_trials(config: TuneConfig, space: SearchSpace) -> int:
    """Number of configurations that the sweep tries."""
    if config.search == "grid":
        size = len(space.grid_points)
        return min(config.trials or size, size)
    return config.trials or DEFAULT_TRIALS


def suggest(
    config: TuneConfig,
    space: SearchSpace,
    seed: int,
    trial: int,
    history: Sequence[Observation],
    aims: Sequence[Aim],
) -> Suggestion:
    """The configuration of trial number `trial` (from 0). `history` holds the earlier trials that did not fail."""
    if trial < len(config.points):
        return Suggestion(given_point(space, seed, trial, config.points[trial]), "given")
    if config.search == "grid":
        return Suggestion(space.grid_points[trial], "grid")
    if config.search == "random":
        return Suggestion(random_point(space, seed, trial), "random")
    startup = max(1, count_trials(config, space) // STARTUP_SHARE)
    if max(trial, len(history)) < startup or not any(item.values for item in history):
        return Suggestion(random_point(space, seed, trial), "startup")
    return model_point(config, space, seed, trial, history, aims)


def random_point(space: SearchSpace, seed: int, trial: int) -> dict[str, Any]:
    """An independent draw for each trial, whatever the other trials are."""
    return space.draw(_generator(seed, trial))


def given_point(space: SearchSpace, seed: int, trial: int, point: Mapping[str, Any]) -> dict[str, Any]:
    """A known good point of the spec; what it leaves out is drawn."""
    return space.draw(_generator(seed, trial), given=point)


def _generator(seed: int, trial: int) -> random.Random:
    return random.Random(f"penstock sweep {seed} trial {trial}")


def model_point(
    config: TuneConfig,
    space: SearchSpace,
    seed: int,
    trial: int,
    history: Sequence[Observation],
    aims: Sequence[Aim],
) -> Suggestion:
    """The point that the model of the search finds most promising.

    The study is built anew from `history` and its sampler seeded by (seed, trial), so nothing depends on what this
    process did before. A point that breaks a constraint is asked for again; after 50 of them chance decides.

    Source: Bergstra et al. 2011, https://papers.nips.cc/paper/4443 (tpe); stopped trials rank below finished ones, by
        the epoch they reached, as Optuna does. Of several aims only trials with all of them known are told.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler = make_sampler(config, space, _sampler_seed(seed, trial))
    study = optuna.create_study(
        sampler=sampler, directions=["maximize" if aim.mode == "max" else "minimize" for aim in aims]
    )
    study.add_trials([_frozen(space, item, aims) for item in history if item.finals or len(aims) == 1])
    for _ in range(MAX_ASKS):
        asked = study.ask()
        chosen = space.fill(lambda name, item, asked=asked: _ask_value(asked, name, item))  # type: ignore[misc]
        if space.allows(chosen):
            return Suggestion(chosen, "model")
        study.tell(asked, state=optuna.trial.TrialState.FAIL)
    return Suggestion(random_point(space, seed, trial), "random")


def make_sampler(config: TuneConfig, space: SearchSpace, seed: int) -> optuna.samplers.BaseSampler:
    """The sampler that the spec asks for."""
    import warnings

    import optuna

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        if config.sampler == "gp":
            return optuna.samplers.GPSampler(seed=seed, n_startup_trials=1, warn_independent_sampling=False)
        # group: trials of a conditional space differ in their parameters; each set of them gets an estimator.
        return optuna.samplers.TPESampler(
            seed=seed, n_startup_trials=1, multivariate=True, group=bool(space.conditions)
        )


def _sampler_seed(seed: int, trial: int) -> int:
    digest = hashlib.sha256(f"penstock sweep {seed} trial {trial}".encode()).digest()
    return int.from_bytes(digest[:4], "big")


def distribution_of(item: Distribution) -> optuna.distributions.BaseDistribution:
    """An entry in Optuna's form."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if not isinstance(item, Range):
        # Places in the list, because Optuna takes no sections as choices.
        return CategoricalDistribution(tuple(range(len(item.values))))
    low, high = item.ends
    if isinstance(item, IntUniform | IntLogUniform):
        return IntDistribution(int(low), int(high), log=item.log, step=int(item.spacing or 1))
    return FloatDistribution(low, high, log=item.log, step=item.spacing)


def _ask_value(asked: optuna.Trial, name: str, item: Distribution) -> Any:
    if not isinstance(item, Range):
        values = item.values
        return values[asked.suggest_categorical(name, list(range(len(values))))]
    low, high = item.ends
    if isinstance(item, IntUniform | IntLogUniform):
        return asked.suggest_int(name, int(low), int(high), log=item.log, step=int(item.spacing or 1))
    return asked.suggest_float(name, low, high, log=item.log, step=item.spacing)


def _frozen(space: SearchSpace, item: Observation, aims: Sequence[Aim]) -> optuna.trial.FrozenTrial:
    """An earlier trial in Optuna's form: finished by its best epoch, stopped by the epochs it reached."""
    import optuna

    states = {"running": "RUNNING", "finished": "COMPLETE", "stopped": "PRUNED"}
    names = [name for name in space.entries if name in item.config]
    values: dict[str, Any] = {"state": optuna.trial.TrialState[states[item.state]]}
    if len(aims) > 1:
        # Several aims know no half-finished trial.
        values = {"state": optuna.trial.TrialState.COMPLETE, "values": item.finals}
    else:
        best = max if aims[0].mode == "max" else min
        values["value"] = best(item.values.values()) if item.state == "finished" else None
        values["intermediate_values"] = dict(item.values)
    return optuna.trial.create_trial(
        params={name: to_optuna(space.entries[name], item.config[name]) for name in names},
        distributions={name: distribution_of(space.entries[name]) for name in names},
        **values,
    )


def to_optuna(item: Distribution, value: Any) -> Any:
    """A value in Optuna's form."""
    # A journal gives back lists for tuples; choices are compared as JSON would hold them.
    return value if isinstance(item, Range) else [plain(known) for known in item.values].index(plain(value))
