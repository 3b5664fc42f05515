"""components/tune/stopping.py: who goes on, by plain numbers."""

from __future__ import annotations

from components.tune.config import TuneConfig
from components.tune.stopping import deal, make_stop_rule

SPACE = {"train.learning_rate": {"log_uniform": [1e-5, 1e-1]}}


def rule(epochs: int, mode="max", **tune):
    return make_stop_rule(TuneConfig.model_validate({"space": SPACE, **tune}), epochs, mode)


def feed(stop_rule, trial: int, values: list[float]) -> list[bool]:
    return [stop_rule.goes_on(trial, epoch, value) for epoch, value in enumerate(values, start=1)]


def test_the_median_rule_stops_what_is_worse_than_the_middle_of_the_averages():
    stop_rule = rule(4, scheduler="median", median={"grace_epochs": 2, "min_trials": 3})
    for trial, value in enumerate([0.5, 0.6, 0.7]):
        feed(stop_rule, trial, [value] * 4)
    assert feed(stop_rule, 3, [0.1, 0.59, 0.65]) == [True, False, True]


def test_the_median_rule_minimises_too_and_waits_for_enough_trials():
    stop_rule = rule(3, mode="min", scheduler="median", median={"grace_epochs": 1, "min_trials": 2})
    assert feed(stop_rule, 0, [0.5] * 3) == feed(stop_rule, 1, [9.0] * 3) == [True] * 3
    assert feed(stop_rule, 2, [8.0]) == [False]
    assert feed(stop_rule, 3, [1.0]) == [True]


def test_brackets_are_dealt_in_proportion_whatever_ran_before():
    weights = [4.0, 1.0]
    places = [deal(trial, weights) for trial in range(10)]
    assert (places.count(0), places.count(1)) == (8, 2)
    assert set(places[:5]) == {0, 1}


def test_hyperband_spares_the_trials_of_its_outer_brackets():
    stop_rule = rule(18, scheduler="hyperband", brackets=3)
    outer = next(trial for trial in range(9) if deal(trial, stop_rule.weights) == len(stop_rule.weights) - 1)
    for trial in range(30, 40):
        feed(stop_rule, trial, [0.9] * 18)
    assert not all(feed(stop_rule, 0, [0.1] * 5))
    assert all(feed(stop_rule, outer, [0.1] * 5))
