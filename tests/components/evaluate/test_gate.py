from __future__ import annotations

import numpy as np
import pytest

from components.evaluate.gate import CHAMPION, COMPRESSED, Comparison, judge


def comparison(losses: int, gains: int = 0, n: int = 450, name: str = COMPRESSED, **more) -> Comparison:
    """The candidate loses the first examples and gains the last ones."""
    index = np.arange(n)
    return Comparison(name, candidate_right=index >= losses, reference_right=index < n - gains, **more)


@pytest.mark.parametrize(("losses", "passes"), [(0, True), (3, True), (4, False), (12, False)])
def test_demo_setting_passes_with_at_most_three_losses(losses, passes):
    gate = judge([comparison(losses)], 450, 0.02, 0.95)
    assert gate["passed"] is passes
    assert gate["difference"] == pytest.approx(-losses / 450)
    assert gate["interval"][0] < gate["difference"] < gate["interval"][1]
    assert (gate["reason"] is None) is passes


def test_too_few_examples_are_refused_with_the_number_needed():
    gate = judge([comparison(0, n=100)], 100, 0.02, 0.95)
    assert not gate["passed"]
    assert "at least 150 are needed" in gate["reason"]


def test_refusal_of_compress_stands_whatever_the_test_says():
    gate = judge([comparison(0, objection="No candidate was within tolerance.")], 450, 0.02, 0.95)
    assert not gate["passed"]
    assert gate["reason"] == "No candidate was within tolerance."
    assert gate["interval"][0] < 0


def test_losing_to_the_champion_refuses_and_is_what_is_shown():
    gate = judge([comparison(0), comparison(20, name=CHAMPION)], 450, 0.02, 0.95)
    assert not gate["passed"]
    assert gate["difference"] == pytest.approx(-20 / 450)
    assert [(part["name"], part["passed"]) for part in gate["parts"]] == [(COMPRESSED, True), (CHAMPION, False)]


def test_better_candidate_passes():
    assert judge([comparison(0, gains=10)], 450, 0.02, 0.95)["passed"]


def test_nothing_to_compare_passes_without_numbers():
    gate = judge([], 450, 0.02, 0.95)
    assert gate["passed"] and gate["difference"] is None and gate["interval"] is None
