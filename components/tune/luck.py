"""Whether the winner is better, or only had luck."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

DRAWS = 20_000


def chance_of_luck(scores: Mapping[int, Sequence[float]], winner: int, sign: int) -> float | None:
    """The chance that another finalist's true mean is better than the winner's, so that it only seemed best.

    The scores of a finalist over seeds are taken as normal around its true mean, with one variance for all finalists (a
    few seeds each do not tell more); with a flat prior the means follow a t distribution, from which is drawn.

    Args:
        scores: Metric over seeds, by trial; none of them chose the finalists, else the winner would be flattered.
        sign: 1 if more is better, else -1.

    Returns:
        None if there is nothing to compare, or no finalist has two scores.
    """
    import numpy as np

    counts = {trial: len(values) for trial, values in scores.items()}
    freedom = sum(counts.values()) - len(counts)
    if len(scores) < 2 or freedom < 1 or min(counts.values()) < 1:
        return None
    squares = sum(float(np.var(values)) * len(values) for values in scores.values())
    generator = np.random.default_rng(0)
    spread = np.sqrt(squares / generator.chisquare(freedom, DRAWS))
    means = {
        trial: sign * np.mean(values) + spread * generator.standard_normal(DRAWS) / np.sqrt(len(values))
        for trial, values in scores.items()
    }
    best_other = np.max([means[trial] for trial in scores if trial != winner], axis=0)
    # Exact ties count half: whichever was taken, the other was as good.
    worse, tied = np.mean(best_other > means[winner]), np.mean(best_other == means[winner])
    # Never 0: so many draws cannot tell less than one in their number.
    return max(round(float(worse + tied / 2), 4), 1 / DRAWS)


def percent(chance: float) -> str:
    """`21%`, or `under 0.1%`."""
    return "under 0.1%" if chance < 0.001 else f"{chance:.1%}" if chance < 0.1 else f"{chance:.0%}"
