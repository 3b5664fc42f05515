"""components/tune/search.py: suggestions are pure functions of (seed, trial, history)."""

from __future__ import annotations

import itertools

import pytest

from components.tune.config import TuneConfig
from components.tune.search import Observation, count_trials, suggest

RANGES = {"train.learning_rate": {"log_uniform": [1e-5, 1e-1]}, "train.gradient_clipping": {"uniform": [0.5, 2]}}


def config(search: str, **values) -> TuneConfig:
    return TuneConfig.model_validate({"search": search, "space": RANGES, **values})


def observed(tune: TuneConfig, count: int) -> list[Observation]:
    """Trials that did the better the closer their rate was to 1e-3."""
    history: list[Observation] = []
    for number in range(count):
        values = suggest(tune, 0, number, history, "max").config
        distance = abs(values["train.learning_rate"] / 1e-3 - 1)
        history.append(Observation(values, {1: -distance - 1, 2: -distance}, "finished"))
    return history


def test_a_grid_is_the_product_in_the_stated_order():
    space = {"b": {"grid": [1, 2]}, "a": {"choice": ["x", "y", "z"]}}
    tune = TuneConfig.model_validate({"search": "grid", "space": space})
    points = [tuple(suggest(tune, 0, n, [], "max").config.values()) for n in range(count_trials(tune))]
    assert points == list(itertools.product([1, 2], ["x", "y", "z"]))


def test_a_grid_may_be_cut_short():
    space = {"a": {"grid": [1, 2, 3]}}
    assert count_trials(TuneConfig.model_validate({"search": "grid", "trials": 2, "space": space})) == 2


@pytest.mark.parametrize("search", ["random", "bayesian"])
def test_equal_arguments_give_equal_suggestions(search):
    tune = config(search, trials=9)
    history = observed(tune, 5)
    assert suggest(tune, 0, 5, history, "max") == suggest(tune, 0, 5, history, "max")
    assert suggest(tune, 0, 5, history, "max") != suggest(tune, 1, 5, history, "max")


def test_random_points_lie_in_their_ranges():
    tune = config("random", trials=50, space={**RANGES, "n": {"int_uniform": [1, 3]}, "c": {"choice": [[1], [2]]}})
    points = [suggest(tune, 0, number, [], "max").config for number in range(50)]
    assert all(1e-5 <= point["train.learning_rate"] <= 1e-1 for point in points)
    assert {point["n"] for point in points} == {1, 2, 3}
    assert [1] in [point["c"] for point in points]


def test_the_model_chooses_at_least_two_thirds():
    tune = config("bayesian", trials=7)
    history = observed(tune, 7)
    chosen = [suggest(tune, 0, number, history[:number], "max").chosen_by for number in range(7)]
    assert chosen == ["startup"] * 2 + ["model"] * 5


def test_without_any_report_the_model_does_not_choose():
    assert suggest(config("bayesian", trials=6), 0, 5, [], "max").chosen_by == "startup"


def test_the_model_finds_the_good_region():
    tune = config("bayesian", trials=30, space={"train.learning_rate": RANGES["train.learning_rate"]})
    history = observed(tune, 30)
    late = sorted(item.config["train.learning_rate"] for item in history[20:])
    assert 2e-4 < late[len(late) // 2] < 3e-3


def test_stopped_and_running_trials_and_sections_are_taken():
    space = {"model": {"choice": [{"architecture": "mlp"}, {"hidden_sizes": (8, 8), "architecture": "mlp"}]}}
    tune = config("bayesian", trials=9, space={**RANGES, **space})
    first = suggest(tune, 0, 0, [], "max").config
    as_read = {**first, "model": {"architecture": "mlp", "hidden_sizes": [8, 8]}}
    history = [Observation(first, {1: 0.5}, "stopped"), Observation(as_read, {}, "running")]
    assert suggest(tune, 0, 4, history, "max").chosen_by == "model"
