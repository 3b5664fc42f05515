"""components/tune/aims.py: the Pareto set and the rule that picks one of it."""

from __future__ import annotations

import pytest

from components.tasks import get_task
from components.tune.aims import Aim, pareto_set, pick, resolve_aims
from components.tune.config import TuneConfig

AIMS = (Aim("accuracy", "max"), Aim("latency_ms", "min"))
POINTS = [
    {"accuracy": 0.90, "latency_ms": 1.0},
    {"accuracy": 0.95, "latency_ms": 3.0},
    {"accuracy": 0.94, "latency_ms": 2.0},
    {"accuracy": 0.89, "latency_ms": 1.0},
    {"accuracy": 0.95, "latency_ms": 4.0},
    {"accuracy": 0.94, "latency_ms": 2.0},
]


def test_the_pareto_set_holds_what_nothing_beats():
    assert pareto_set(POINTS, AIMS) == [0, 1, 2, 5]


@pytest.mark.parametrize(
    ("max_drop", "prefer", "expected"),
    [(0.0, None, 1), (0.0, "latency_ms", 1), (0.01, "latency_ms", 2), (0.05, "latency_ms", 0), (0.5, None, 1)],
)
def test_the_rule_trades_a_stated_drop_for_the_preferred_aim(max_drop, prefer, expected):
    assert pick(POINTS, AIMS, max_drop, prefer) == expected


def test_with_one_aim_the_best_wins_and_of_equals_the_earlier():
    assert pick(POINTS, AIMS[:1], 0.0, None) == 1


@pytest.mark.parametrize(
    ("metric", "expected"),
    [
        (None, [("accuracy", "max")]),
        ("loss", [("loss", "min")]),
        (["f1", "size_bytes"], [("f1", "max"), ("size_bytes", "min")]),
        ([{"name": "loss", "mode": "max"}], [("loss", "max")]),
    ],
)
def test_the_better_way_is_known_by_name(metric, expected):
    tune = TuneConfig.model_validate({"metric": metric, "space": {"train.learning_rate": {"choice": [1]}}})
    assert [(aim.name, aim.mode) for aim in resolve_aims(tune, get_task("image-classification"))] == expected
