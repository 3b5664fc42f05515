"""components/tune/luck.py: the stated chance is as often right as it says."""

from __future__ import annotations

import numpy as np
import pytest

from components.tune.luck import chance_of_luck, percent


def test_a_clear_winner_has_no_luck_and_equals_have_half():
    assert 0 < chance_of_luck({0: [0.9, 0.91, 0.9], 1: [0.5, 0.51, 0.5]}, 0, 1) < 0.001
    assert chance_of_luck({0: [0.9, 0.8, 0.7], 1: [0.7, 0.9, 0.8]}, 0, 1) == pytest.approx(0.5, abs=0.02)
    assert chance_of_luck({0: [0.9, 0.9], 1: [0.9, 0.9]}, 0, 1) == 0.5


def test_smaller_may_be_better():
    assert chance_of_luck({0: [0.1, 0.11], 1: [0.5, 0.51]}, 0, -1) < 0.01


@pytest.mark.parametrize("scores", [{0: [0.9, 0.8]}, {0: [0.9], 1: [0.8]}, {}])
def test_nothing_to_compare_gives_no_chance(scores):
    assert chance_of_luck(scores, 0, 1) is None


def test_over_many_sweeps_it_is_right_on_average():
    """Two finalists, true means drawn like their noise: of the winners with chance p, a share p is not best."""
    generator = np.random.default_rng(1)
    told, wrong = [], []
    for _ in range(300):
        truth = generator.normal(0, 0.02, 2)
        scores = {index: list(generator.normal(truth[index], 0.02, 3)) for index in range(2)}
        winner = max(scores, key=lambda index: np.mean(scores[index]))
        told.append(chance_of_luck(scores, winner, 1))
        wrong.append(truth[winner] < truth[1 - winner])
    # A flat prior overstates small differences a little; three standard errors of 300 sweeps are 0.07.
    assert np.mean(told) == pytest.approx(np.mean(wrong), abs=0.1)


@pytest.mark.parametrize(("chance", "text"), [(0.00005, "under 0.1%"), (0.0213, "2.1%"), (0.213, "21%")])
def test_a_small_chance_is_not_told_as_none(chance, text):
    assert percent(chance) == text
