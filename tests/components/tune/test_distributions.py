"""components/tune/distributions.py: what may be drawn, and what could have been."""

from __future__ import annotations

import math
import random

import pytest

from components.tune.distributions import parse_item

ITEMS = {
    "choice": {"choice": ["a", {"architecture": "mlp", "hidden_sizes": (8, 8)}]},
    "uniform": {"uniform": [0.5, 2]},
    "stepped": {"uniform": [0.1, 0.5], "step": 0.1},
    "log": {"log_uniform": [1e-5, 1e-1]},
    "int": {"int_uniform": [1, 6]},
    "int-stepped": {"int_uniform": [16, 64], "step": 16},
    "int-log": {"int_log_uniform": [1, 64]},
}


@pytest.mark.parametrize("name", ITEMS)
def test_what_is_drawn_is_contained(name):
    item, generator = parse_item("x", ITEMS[name]), random.Random(0)
    assert all(item.contains(item.draw(generator)) for _ in range(200))


@pytest.mark.parametrize(
    ("name", "value"),
    [("choice", "b"), ("uniform", 2.1), ("stepped", 0.15), ("log", 1), ("int", 2.5), ("int", True), ("int-stepped", 24),
     ("int-log", 1.5), ("uniform", "1")],
)  # fmt: skip
def test_what_cannot_be_drawn_is_not_contained(name, value):
    assert not parse_item("x", ITEMS[name]).contains(value)


def test_steps_are_counted_in_decimal():
    assert parse_item("x", ITEMS["stepped"]).values == (0.1, 0.2, 0.3, 0.4, 0.5)
    assert parse_item("x", ITEMS["int-stepped"]).values == (16, 32, 48, 64)


def test_a_section_read_back_from_json_is_contained():
    assert parse_item("x", ITEMS["choice"]).contains({"hidden_sizes": [8, 8], "architecture": "mlp"})


@pytest.mark.parametrize(("name", "low", "high"), [("log", 1e-5, 1e-1), ("int-log", 0.5, 64.5)])
def test_logarithms_are_uniform(name, low, high):
    item, generator = parse_item("x", ITEMS[name]), random.Random(0)
    drawn = sorted(item.draw(generator) for _ in range(4000))
    assert drawn[2000] == pytest.approx(math.sqrt(low * high), rel=0.2)


def test_a_large_range_of_integers_is_not_listed():
    item = parse_item("x", {"int_uniform": [1, 10**12]})
    assert item.contains(item.draw(random.Random(0)))


@pytest.mark.parametrize(
    ("item", "text"),
    [
        ({"uniform": [2, 1]}, "is empty"),
        ({"log_uniform": [0, 1]}, "above 0"),
        ({"uniform": [0, 1], "step": 2}, "larger than the range"),
    ],
)
def test_an_empty_range_has_a_problem(item, text):
    assert text in parse_item("x", item).problem()


@pytest.mark.parametrize(
    "item", [[1, 2], {"choise": [1]}, {"choice": [1], "step": 1}, {"uniform": [0, 1], "grid": [1]}]
)
def test_what_is_no_distribution_is_refused(item):
    with pytest.raises(ValueError, match="is no distribution"):
        parse_item("x", item)
