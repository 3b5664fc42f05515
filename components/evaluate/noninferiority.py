"""Exact paired test that a candidate is not worse than a reference by more than a tolerance, on the same examples.

Each example is right or wrong under both models. With `gains` (only the candidate is right) and `losses` (only the
reference is right) the difference of the two accuracies is (gains - losses) / n, and only these discordant examples
carry information. The hypothesis to be rejected is: true difference <= shift, where shift = -tolerance.

The test orders outcomes by Tango's score statistic and takes its exact tail probability under the trinomial law of
(gains, losses), at the worst value of the nuisance parameter within a confidence set of it. It never relies on large
samples: with no discordant example at all it still needs about ln(alpha) / ln(1 - tolerance) examples, where a
bootstrap or a normal interval would claim [0, 0] from any number.

Source: Tango 1998, Statistics in Medicine 17:891 (statistic); Sidik 2003, Statistics in Medicine 22:265 (exact test,
why the boundary is the worst case); Berger and Boos 1994, JASA 89:1012 (confidence set for the nuisance parameter).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

NUISANCE_ALPHA = 1e-3
"""Chance that the nuisance parameter lies outside its confidence set; added to the p-value."""
NUISANCE_POINTS = 33
"""Values of the nuisance parameter tried before the worst is refined; the tail probability is smooth in it."""
TAIL = 1e-10
"""Probability of numbers of gains that are left out of a sum; added to it instead."""
BISECTIONS = 18


@dataclass(frozen=True)
class PairedCounts:
    """How two models fare on the same n examples: the discordant ones, by which model is right."""

    gains: int
    losses: int
    n: int

    @property
    def difference(self) -> float:
        """Accuracy of the candidate minus that of the reference; negative is worse."""
        return (self.gains - self.losses) / self.n

    def swapped(self) -> PairedCounts:
        return PairedCounts(self.losses, self.gains, self.n)


def count_pairs(candidate_right: np.ndarray, reference_right: np.ndarray) -> PairedCounts:
    """Counts from two boolean arrays of shape (n,)."""
    gains = int((candidate_right & ~reference_right).sum())
    losses = int((reference_right & ~candidate_right).sum())
    return PairedCounts(gains, losses, len(candidate_right))


def tango_statistic(gains: np.ndarray, losses: np.ndarray, n: int, shift: float) -> np.ndarray:
    """Tango's score statistic for "true difference = shift"; large values speak for a better candidate."""
    import numpy as np

    b = (2 * n - gains + losses) * shift - gains - losses
    c = -losses * shift * (1 - shift)
    loss_rate = (np.sqrt(np.maximum(b * b - 8 * n * c, 0)) - b) / (4 * n)
    variance = n * (2 * loss_rate + shift * (1 - shift))
    return (gains - losses - n * shift) / np.sqrt(np.maximum(variance, 1e-12))


def p_value(counts: PairedCounts, shift: float) -> float:
    """Exact p-value of "true difference <= shift" against "greater". `shift` in (-1, 1)."""
    import numpy as np

    low, high = _nuisance_range(counts, abs(shift))
    if low > high:  # the number of discordant examples alone contradicts the hypothesis
        return NUISANCE_ALPHA
    region = _Region.beyond(counts, shift, high)
    grid = np.linspace(low, high, NUISANCE_POINTS)
    tails = np.array([region.probability(rate) for rate in grid])
    best = int(tails.argmax())
    fine = np.linspace(grid[max(best - 1, 0)], grid[min(best + 1, len(grid) - 1)], 9)
    worst = max(tails.max(), *(region.probability(rate) for rate in fine))
    return float(min(1.0, worst + NUISANCE_ALPHA))


def lower_bound(counts: PairedCounts, confidence: float) -> float:
    """One-sided lower confidence bound of the true difference: the largest shift that is rejected."""
    low, high = -1.0, counts.difference
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        if p_value(counts, middle) <= 1 - confidence:
            low = middle
        else:
            high = middle
    return low


def difference_interval(counts: PairedCounts, confidence: float) -> tuple[float, float]:
    """Lower and upper bound of the true difference, each one-sided at `confidence`."""
    return lower_bound(counts, confidence), -lower_bound(counts.swapped(), confidence)


def needed_examples(tolerance: float, confidence: float) -> int:
    """Smallest n with which a candidate that loses no example could pass."""
    alpha = 1 - confidence
    n = max(1, math.floor(math.log(alpha) / math.log1p(-tolerance)))
    while p_value(PairedCounts(0, 0, n), -tolerance) > alpha:
        n += 1
    return n


def allowed_losses(n: int, tolerance: float, confidence: float) -> int:
    """Most net losses, without any gain, that still pass with n examples; -1 if not even 0 does."""
    losses = -1
    while losses < n and p_value(PairedCounts(0, losses + 1, n), -tolerance) <= 1 - confidence:
        losses += 1
    return losses


@dataclass(frozen=True)
class _Region:
    """Outcomes at least as good for the candidate as the observed: with each number of gains, up to so many losses."""

    gains: np.ndarray
    most_losses: np.ndarray
    n: int
    shift: float

    @classmethod
    def beyond(cls, counts: PairedCounts, shift: float, highest_rate: float) -> _Region:
        import numpy as np
        from scipy.stats import binom

        most_gains = int(binom.ppf(1 - TAIL, counts.n, min(1.0, highest_rate + max(shift, 0.0))))
        gains = np.arange(0, max(most_gains, counts.gains) + 1)
        observed = tango_statistic(np.array(counts.gains), np.array(counts.losses), counts.n, shift)
        return cls(gains, _most_losses(gains, counts.n, shift, float(observed)), counts.n, shift)

    def probability(self, rate: float) -> float:
        """Chance of the region where the smaller of the two discordant rates is `rate`."""
        import numpy as np
        from scipy.special import bdtr
        from scipy.stats import binom

        gain_rate, loss_rate = rate + max(self.shift, 0.0), rate + max(-self.shift, 0.0)
        of_gains = binom.pmf(self.gains, self.n, gain_rate)
        share = min(1.0, loss_rate / (1 - gain_rate)) if gain_rate < 1 else 0.0
        rest = self.n - self.gains
        of_losses = np.where(
            self.most_losses >= rest, 1.0, bdtr(np.clip(self.most_losses, 0, None), np.maximum(rest, 1), share)
        )
        return float((of_gains * np.where(self.most_losses < 0, 0.0, of_losses)).sum()) + TAIL


def _most_losses(gains: np.ndarray, n: int, shift: float, observed: float) -> np.ndarray:
    """For each number of gains the most losses whose statistic reaches `observed`; -1 for none.

    The statistic falls as losses grow, so a bisection finds the edge.
    """
    import numpy as np

    low, high = np.full(len(gains), -1), n - gains
    while (low < high).any():
        middle = (low + high + 1) // 2
        reaches = tango_statistic(gains, middle, n, shift) >= observed - 1e-9
        low, high = np.where(reaches, middle, low), np.where(reaches, high, middle - 1)
    return low


def _nuisance_range(counts: PairedCounts, gap: float) -> tuple[float, float]:
    """Confidence set of the smaller discordant rate, from the number of discordant examples (Clopper-Pearson)."""
    from components.evaluate.intervals import clopper_pearson

    low, high = clopper_pearson(counts.gains + counts.losses, counts.n, 1 - NUISANCE_ALPHA)
    return max(0.0, (low - gap) / 2), min((1 - gap) / 2, (high - gap) / 2)
