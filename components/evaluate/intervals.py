"""Confidence intervals of proportions, F1 and averages of them. None of them is ever a point, not even at 0 or 1."""

from __future__ import annotations

import math
from collections.abc import Sequence

Interval = tuple[float, float]


def normal_quantile(confidence: float) -> float:
    """The two-sided standard normal quantile: 1.96 for 0.95."""
    from statistics import NormalDist

    return NormalDist().inv_cdf((1 + confidence) / 2)


def wilson(successes: float, n: float, confidence: float) -> Interval:
    """Wilson's score interval of a proportion; (0, 1) when n is 0.

    Source: Wilson 1927, JASA 22:209; recommended by Brown, Cai and DasGupta 2001, Statistical Science 16:101.
    """
    if n == 0:
        return 0.0, 1.0
    z2 = normal_quantile(confidence) ** 2
    share = successes / n
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = math.sqrt(z2 * (share * (1 - share) / n + z2 / (4 * n * n))) / (1 + z2 / n)
    # At the extremes rounding may leave the share itself a hair outside.
    return max(0.0, min(centre - half, share)), min(1.0, max(centre + half, share))


def clopper_pearson(successes: int, n: int, confidence: float) -> Interval:
    """Exact interval of a proportion. Source: Clopper and Pearson 1934, Biometrika 26:404."""
    from scipy.special import betaincinv

    tail = (1 - confidence) / 2
    low = 0.0 if successes == 0 else float(betaincinv(successes, n - successes + 1, tail))
    high = 1.0 if successes == n else float(betaincinv(successes + 1, n - successes, 1 - tail))
    return low, high


def f1_interval(true_positive: int, errors: int, confidence: float) -> Interval:
    """Interval of F1 = 2 TP / (2 TP + errors), where errors = false positives + false negatives.

    F1 is a rising function 2 J / (1 + J) of the Jaccard index J = TP / (TP + errors), which is a proportion among the
    examples that either the truth or the model puts into the class; Wilson's limits of J are carried over.
    """
    low, high = wilson(true_positive, true_positive + errors, confidence)
    return 2 * low / (1 + low), 2 * high / (1 + high)


def mean_interval(values: Sequence[float], intervals: Sequence[Interval]) -> Interval:
    """Interval of the mean of estimates from the interval of each (MOVER).

    Source: Zou and Donner 2008, Statistics in Medicine 27:1693.
    """
    count = len(values)
    mean = sum(values) / count
    below = math.sqrt(sum((value - low) ** 2 for value, (low, _) in zip(values, intervals, strict=True))) / count
    above = math.sqrt(sum((high - value) ** 2 for value, (_, high) in zip(values, intervals, strict=True))) / count
    return max(0.0, mean - below), min(1.0, mean + above)
