"""The gate: what may be released. Two comparisons at most, each a paired test on the same test examples.

A candidate passes if, at the asked confidence, it is not worse than its reference by more than the tolerance. With
accuracy as the deciding metric the test is exact (`noninferiority.py`). Examples at confidence 0.95:

    tolerance 0.02:  150 examples are needed at least; with 450, a candidate may lose 3 and gain none
    tolerance 0.01:  301 examples are needed at least; with 760, it may lose 2
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from components.evaluate.noninferiority import (
    PairedCounts,
    count_pairs,
    difference_interval,
    needed_examples,
    p_value,
)

if TYPE_CHECKING:
    import numpy as np

TEST_NAME = "exact paired non-inferiority test (Tango's score statistic, one-sided)"
METRIC = "accuracy"
COMPRESSED = "compressed-vs-trained"
CHAMPION = "newcomer-vs-champion"


@dataclass(frozen=True)
class Comparison:
    """A candidate and its reference on the same n test examples.

    Attributes:
        name: COMPRESSED or CHAMPION.
        candidate_right: Which examples the candidate gets right, bool, shape (n,).
        reference_right: The same for the reference.
        objection: Why the candidate is refused whatever the test says; None if nothing is known against it.
    """

    name: str
    candidate_right: np.ndarray
    reference_right: np.ndarray
    objection: str | None = None


def judge(comparisons: Sequence[Comparison], n: int, tolerance: float, confidence: float) -> dict[str, Any]:
    """The verdict over all comparisons; it passes if each of them does.

    Returns:
        {"passed", "test", "metric", "difference", "interval", "tolerance", "n", "confidence", "reason", "parts"}.
        Difference and interval are those of the first comparison that refuses, else of the first.
    """
    parts = [judge_pair(comparison, tolerance, confidence) for comparison in comparisons]
    refused = [part for part in parts if not part["passed"]]
    shown = (
        refused or parts or [{"difference": None, "interval": None, "reason": "There is nothing to compare with."}]
    )[0]
    return {
        "passed": not refused,
        "test": TEST_NAME,
        "metric": METRIC,
        "difference": shown["difference"],
        "interval": shown["interval"],
        "tolerance": tolerance,
        "n": n,
        "confidence": confidence,
        "reason": shown["reason"],
        "parts": parts,
    }


def judge_pair(comparison: Comparison, tolerance: float, confidence: float) -> dict[str, Any]:
    """The verdict of one comparison, with the counts it rests on."""
    counts = count_pairs(comparison.candidate_right, comparison.reference_right)
    needed = needed_examples(tolerance, confidence)
    chance = p_value(counts, -tolerance)
    reason = (
        comparison.objection
        or too_few(counts, needed, tolerance, confidence)
        or too_bad(counts, chance, tolerance, confidence)
    )
    return {
        "name": comparison.name,
        "passed": reason is None,
        "difference": counts.difference,
        "interval": list(difference_interval(counts, confidence)),
        "p_value": chance,
        "gains": counts.gains,
        "losses": counts.losses,
        "n": counts.n,
        "needed_n": needed,
        "reason": reason,
    }


def too_few(counts: PairedCounts, needed: int, tolerance: float, confidence: float) -> str | None:
    """Says how many examples the claim needs, if there are fewer."""
    if counts.n >= needed:
        return None
    return (
        f"{counts.n} test examples are too few to show a loss of at most {tolerance:g} with confidence {confidence:g}; "
        f"at least {needed} are needed: raise data.split.test, give more data, or allow a larger max_drop."
    )


def too_bad(counts: PairedCounts, chance: float, tolerance: float, confidence: float) -> str | None:
    """Says why the test refuses, if it does."""
    if chance <= 1 - confidence:
        return None
    low, _ = difference_interval(counts, confidence)
    return (
        f"The candidate is right on {counts.gains} examples that the reference gets wrong, and wrong on "
        f"{counts.losses} that it gets right (n = {counts.n}): {METRIC} may be {-low:.4f} lower, more than the "
        f"tolerance of {tolerance:g}."
    )
