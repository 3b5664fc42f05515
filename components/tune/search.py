"""What a sweep tries next. Each suggestion is a pure function of (seed, trial, history): nothing is kept in between.

So a sweep that was killed goes on with the very suggestion it would have made, from its journal alone.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from components.tune.config import Choice, Grid, IntUniform, LogUniform, SpaceItem, TuneConfig

if TYPE_CHECKING:
    import optuna

ChosenBy = Literal["startup", "model", "grid", "random"]

DEFAULT_TRIALS = 10
STARTUP_SHARE = 3
"""One trial in this many is drawn at random before the model chooses."""


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
    """

    config: Mapping[str, Any]
    values: Mapping[int, float]
    state: Literal["running", "finished", "stopped"]


def count_trials(config: TuneConfig) -> int:
    """Number of configurations that the sweep tries."""
    if config.search == "grid":
        size = math.prod(len(options(item)) for item in config.space.values())
        return min(config.trials or size, size)
    return config.trials or DEFAULT_TRIALS


def suggest(
    config: TuneConfig, seed: int, trial: int, history: Sequence[Observation], mode: Literal["min", "max"]
) -> Suggestion:
    """The configuration of trial number `trial` (from 0). `history` holds the earlier trials that did not fail."""
    if config.search == "grid":
        return Suggestion(grid_point(config.space, trial), "grid")
    if config.search == "random":
        return Suggestion(random_point(config.space, seed, trial), "random")
    startup = max(1, count_trials(config) // STARTUP_SHARE)
    if trial < startup or not any(item.values for item in history):
        return Suggestion(random_point(config.space, seed, trial), "startup")
    return Suggestion(tpe_point(config.space, seed, trial, history, mode), "model")


def options(item: SpaceItem) -> tuple[Any, ...]:
    """The values of a list; a range has none."""
    return item.choice if isinstance(item, Choice) else item.grid if isinstance(item, Grid) else ()


def grid_point(space: Mapping[str, SpaceItem], trial: int) -> dict[str, Any]:
    """Point number `trial` of the product in the stated order: the last entry changes fastest."""
    point = next(itertools.islice(itertools.product(*map(options, space.values())), trial, None))
    return dict(zip(space, point, strict=True))


def random_point(space: Mapping[str, SpaceItem], seed: int, trial: int) -> dict[str, Any]:
    """An independent draw for each trial, whatever the other trials are."""
    generator = random.Random(f"penstock sweep {seed} trial {trial}")
    return {name: _draw(item, generator) for name, item in space.items()}


def _draw(item: SpaceItem, generator: random.Random) -> Any:
    values = options(item)
    if values:
        return values[generator.randrange(len(values))]
    low, high = _bounds(item)
    if isinstance(item, IntUniform):
        return generator.randint(int(low), int(high))
    if isinstance(item, LogUniform):
        return min(max(math.exp(generator.uniform(math.log(low), math.log(high))), low), high)
    return generator.uniform(low, high)


def _bounds(item: SpaceItem) -> tuple[float, float]:
    low, high = next(iter(item.model_dump().values()))
    return low, high


def tpe_point(
    space: Mapping[str, SpaceItem],
    seed: int,
    trial: int,
    history: Sequence[Observation],
    mode: Literal["min", "max"],
) -> dict[str, Any]:
    """The point that a Tree-structured Parzen Estimator finds most promising.

    The study is built anew from `history` and its sampler seeded by (seed, trial), so nothing depends on what this
    process did before.

    Source: Bergstra et al. 2011, https://papers.nips.cc/paper/4443; stopped trials rank below finished ones, by the
        epoch they reached, as Optuna does.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler = optuna.samplers.TPESampler(seed=_sampler_seed(seed, trial), n_startup_trials=1, multivariate=True)
    study = optuna.create_study(sampler=sampler, direction="maximize" if mode == "max" else "minimize")
    distributions = {name: _distribution(item) for name, item in space.items()}
    for item in history:
        study.add_trial(_frozen(space, distributions, item, max if mode == "max" else min))
    chosen = study.ask(distributions).params
    return {name: _from_optuna(item, chosen[name]) for name, item in space.items()}


def _sampler_seed(seed: int, trial: int) -> int:
    digest = hashlib.sha256(f"penstock sweep {seed} trial {trial}".encode()).digest()
    return int.from_bytes(digest[:4], "big")


def _distribution(item: SpaceItem) -> optuna.distributions.BaseDistribution:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    values = options(item)
    if values:
        # Places in the list, because Optuna takes no sections as choices.
        return CategoricalDistribution(tuple(range(len(values))))
    low, high = _bounds(item)
    if isinstance(item, IntUniform):
        return IntDistribution(int(low), int(high))
    return FloatDistribution(low, high, log=isinstance(item, LogUniform))


def _frozen(
    space: Mapping[str, SpaceItem], distributions: Mapping[str, Any], item: Observation, best: Any
) -> optuna.trial.FrozenTrial:
    """An earlier trial in Optuna's form: finished by its best epoch, stopped by the epochs it reached."""
    import optuna

    states = {"running": "RUNNING", "finished": "COMPLETE", "stopped": "PRUNED"}
    return optuna.trial.create_trial(
        state=optuna.trial.TrialState[states[item.state]],
        params={name: _to_optuna(space[name], item.config[name]) for name in space},
        distributions=dict(distributions),
        value=best(item.values.values()) if item.state == "finished" else None,
        intermediate_values=dict(item.values),
    )


def _to_optuna(item: SpaceItem, value: Any) -> Any:
    # A journal gives back lists for tuples; choices are compared as JSON would hold them.
    values = [_plain(option) for option in options(item)]
    return values.index(_plain(value)) if values else value


def _plain(value: Any) -> Any:
    """Lists for tuples, as a value looks after a trip through JSON."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _from_optuna(item: SpaceItem, value: Any) -> Any:
    values = options(item)
    if values:
        return values[value]
    return int(value) if isinstance(item, IntUniform) else float(value)
