"""components/tune/search.py: suggestions are pure functions of (seed, trial, history)."""

from __future__ import annotations

import pytest

from components.models.config import MlpConfig
from components.train.config import TrainConfig
from components.tune.aims import Aim
from components.tune.config import TuneConfig
from components.tune.search import Observation, Suggestion, count_trials, suggest
from components.tune.space import SearchSpace

RANGES = {"train.learning_rate": {"log_uniform": [1e-5, 1e-1]}, "train.gradient_clipping": {"uniform": [0.5, 2]}}


def config(search: str, **values) -> TuneConfig:
    return TuneConfig.model_validate({"search": search, "space": RANGES, **values})


def space_of(tune: TuneConfig) -> SearchSpace:
    return SearchSpace(tune, MlpConfig(architecture="mlp"), TrainConfig())


def ask(tune: TuneConfig, seed: int, trial: int, history: list[Observation]) -> Suggestion:
    return suggest(tune, space_of(tune), seed, trial, history, [Aim("accuracy", "max")])


def observed(tune: TuneConfig, count: int) -> list[Observation]:
    """Trials that did the better the closer their rate was to 1e-3."""
    history: list[Observation] = []
    for number in range(count):
        values = ask(tune, 0, number, history).config
        distance = abs(values["train.learning_rate"] / 1e-3 - 1)
        history.append(Observation(values, {1: -distance - 1, 2: -distance}, "finished"))
    return history


def test_a_grid_is_gone_through_in_order_and_may_be_cut_short():
    space = {"train.global_batch_size": {"grid": [8, 16, 32]}}
    tune = TuneConfig.model_validate({"search": "grid", "trials": 2, "space": space})
    assert count_trials(tune, space_of(tune)) == 2
    assert [ask(tune, 0, number, []).config for number in range(2)] == [
        {"train.global_batch_size": 8},
        {"train.global_batch_size": 16},
    ]


@pytest.mark.parametrize("search", ["random", "bayesian"])
def test_equal_arguments_give_equal_suggestions(search):
    tune = config(search, trials=9)
    history = observed(tune, 5)
    assert ask(tune, 0, 5, history) == ask(tune, 0, 5, history)
    assert ask(tune, 0, 5, history) != ask(tune, 1, 5, history)


def test_random_points_lie_in_their_ranges():
    tune = config(
        "random",
        trials=50,
        space={
            **RANGES,
            "train.schedule.step_epochs": {"int_uniform": [1, 3]},
            "model.hidden_sizes": {"choice": [[1], [2]]},
        },
    )
    points = [ask(tune, 0, number, []).config for number in range(50)]
    assert all(1e-5 <= point["train.learning_rate"] <= 1e-1 for point in points)
    assert {point["train.schedule.step_epochs"] for point in points} == {1, 2, 3}
    assert [1] in [point["model.hidden_sizes"] for point in points]


def test_the_model_chooses_at_least_two_thirds():
    tune = config("bayesian", trials=7)
    history = observed(tune, 7)
    chosen = [ask(tune, 0, number, history[:number]).chosen_by for number in range(7)]
    assert chosen == ["startup"] * 2 + ["model"] * 5


def test_without_any_report_the_model_does_not_choose():
    assert ask(config("bayesian", trials=6), 0, 5, []).chosen_by == "startup"


def test_the_model_finds_the_good_region():
    tune = config("bayesian", trials=30, space={"train.learning_rate": RANGES["train.learning_rate"]})
    history = observed(tune, 30)
    late = sorted(item.config["train.learning_rate"] for item in history[20:])
    assert 2e-4 < late[len(late) // 2] < 3e-3


def test_stopped_and_running_trials_and_sections_are_taken():
    space = {"model": {"choice": [{"architecture": "mlp"}, {"hidden_sizes": (8, 8), "architecture": "mlp"}]}}
    tune = config("bayesian", trials=9, space={**RANGES, **space})
    first = ask(tune, 0, 0, []).config
    as_read = {**first, "model": {"architecture": "mlp", "hidden_sizes": [8, 8]}}
    history = [Observation(first, {1: 0.5}, "stopped"), Observation(as_read, {}, "running")]
    assert ask(tune, 0, 4, history).chosen_by == "model"


CONDITIONAL = {
    "model": {"choice": [{"architecture": "mlp"}, {"architecture": "cnn"}]},
    "model.kernel_size": {"int_uniform": [1, 7], "step": 2, "when": "model.architecture == cnn"},
    **RANGES,
}


def test_the_model_asks_only_for_what_is_active_and_allowed():
    tune = config("bayesian", trials=12, space=CONDITIONAL, constraints=["train.learning_rate < 1e-3"])
    history = observed(tune, 12)
    assert all(space_of(tune).contains(item.config) for item in history)
    assert {"model.kernel_size" in item.config for item in history} == {True, False}


def test_after_fifty_refused_points_chance_decides():
    tune = config("bayesian", trials=9, constraints=["train.learning_rate < 1.05e-5"])
    history = [Observation({"train.learning_rate": 1e-2, "train.gradient_clipping": 1.0}, {1: 0.5}, "finished")] * 4
    suggestion = ask(tune, 0, 5, history)
    assert suggestion.chosen_by in ("random", "model")
    assert suggestion.config["train.learning_rate"] < 1.05e-5


def test_a_gaussian_process_chooses_between_the_good_points():
    tune = config("bayesian", trials=9, sampler="gp", space={"train.schedule.warmup": {"uniform": [0, 0.9]}})
    history = [
        Observation({"train.schedule.warmup": value}, {1: -((value - 0.6) ** 2)}, "finished")
        for value in (0.1, 0.3, 0.5, 0.7, 0.9)
    ]
    suggestion = ask(tune, 0, 6, history)
    assert suggestion.chosen_by == "model" and 0.5 < suggestion.config["train.schedule.warmup"] < 0.7
    assert ask(tune, 0, 6, history) == suggestion
