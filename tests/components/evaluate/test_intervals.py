from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import binomtest

from components.evaluate.intervals import clopper_pearson, f1_interval, mean_interval, wilson


@pytest.mark.parametrize(("successes", "n"), [(0, 10), (3, 10), (10, 10), (437, 450)])
def test_intervals_of_a_proportion_match_scipy(successes, n):
    test = binomtest(successes, n)
    for interval, method in ((wilson, "wilson"), (clopper_pearson, "exact")):
        expected = test.proportion_ci(0.95, method)
        assert interval(successes, n, 0.95) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_no_example_says_nothing():
    assert wilson(0, 0, 0.95) == (0.0, 1.0)


@pytest.mark.parametrize(("hits", "errors"), [(0, 5), (5, 0), (90, 10), (1, 1)])
def test_f1_lies_in_its_interval_which_is_no_point(hits, errors):
    low, high = f1_interval(hits, errors, 0.95)
    assert low <= 2 * hits / (2 * hits + errors) <= high
    assert high > low


def test_f1_interval_covers_as_often_as_it_says():
    generator, true_rates = np.random.default_rng(0), [0.4, 0.05, 0.05, 0.5]  # hits, misses, false alarms, the rest
    draws = generator.multinomial(300, true_rates, size=2000)
    true_f1, inside = 0.8 / 0.9, 0
    for hits, misses, alarms, _ in draws.tolist():
        low, high = f1_interval(hits, misses + alarms, 0.95)
        inside += low <= true_f1 <= high
    assert inside / 2000 == pytest.approx(0.95, abs=3 * math.sqrt(0.95 * 0.05 / 2000) + 0.005)


def test_mean_of_equal_estimates_is_narrower_by_the_root_of_their_number():
    low, high = mean_interval([0.5] * 4, [(0.3, 0.7)] * 4)
    assert (low, high) == pytest.approx((0.4, 0.6))
