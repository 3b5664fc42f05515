"""The exact paired test against brute force, closed forms and a seeded simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.stats import multinomial

from components.evaluate import noninferiority
from components.evaluate.noninferiority import (
    PairedCounts,
    allowed_losses,
    count_pairs,
    difference_interval,
    needed_examples,
    p_value,
    tango_statistic,
)


def all_tables(n: int) -> tuple[np.ndarray, np.ndarray]:
    gains, losses = np.meshgrid(np.arange(n + 1), np.arange(n + 1), indexing="ij")
    kept = gains + losses <= n
    return gains[kept], losses[kept]


def table_chances(gains: np.ndarray, losses: np.ndarray, n: int, rate: float, shift: float) -> np.ndarray:
    """Trinomial probabilities where the losses are `-shift` more likely than the gains."""
    shares = [rate, rate - shift, 1 - 2 * rate + shift]
    return multinomial.pmf(np.stack([gains, losses, n - gains - losses], axis=1), n, shares)


def test_counts_are_of_discordant_examples():
    candidate, reference = np.array([1, 1, 0, 0, 1], bool), np.array([1, 0, 1, 1, 1], bool)
    assert count_pairs(candidate, reference) == PairedCounts(gains=1, losses=2, n=5)


@pytest.mark.parametrize(("gains", "losses"), [(0, 3), (2, 5), (6, 1)])
def test_statistic_uses_the_restricted_maximum_likelihood(gains, losses):
    n, shift = 40, -0.1

    def minus_likelihood(rate):
        return -(
            gains * math.log(rate)
            + losses * math.log(rate - shift)
            + (n - gains - losses) * math.log(1 - 2 * rate + shift)
        )

    rate = minimize_scalar(minus_likelihood, bounds=(1e-12, 0.449999), method="bounded", options={"xatol": 1e-12}).x
    expected = (gains - losses - n * shift) / math.sqrt(n * (2 * rate - shift - shift**2))
    assert tango_statistic(np.array(gains), np.array(losses), n, shift) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(("gains", "losses"), [(0, 0), (0, 1), (3, 4), (8, 2)])
def test_p_value_is_the_exact_tail_at_the_worst_nuisance_rate(gains, losses):
    n, shift = 40, -0.1
    every_gain, every_loss = all_tables(n)
    statistic = tango_statistic(every_gain, every_loss, n, shift)
    region = statistic >= tango_statistic(np.array(gains), np.array(losses), n, shift) - 1e-9
    low, high = noninferiority._nuisance_range(PairedCounts(gains, losses, n), -shift)
    tails = [
        table_chances(every_gain[region], every_loss[region], n, rate, shift).sum()
        for rate in np.linspace(low, high, 400)
    ]
    expected = max(tails) + noninferiority.NUISANCE_ALPHA
    assert p_value(PairedCounts(gains, losses, n), shift) == pytest.approx(expected, abs=1e-4)


def test_chance_of_passing_a_candidate_on_the_boundary_is_at_most_alpha():
    n, shift = 50, -0.1
    gains, losses = all_tables(n)
    plausible = (gains <= 12) & (losses <= 16)  # what is left out is refused, or rarer than 1e-6 under the rates below
    gains, losses = gains[plausible], losses[plausible]
    candidates = tango_statistic(gains, losses, n, shift) > 1.2  # smaller statistics have p-values far above 0.05
    passes = np.zeros(len(gains), bool)
    passes[candidates] = [
        p_value(PairedCounts(int(gain), int(loss), n), shift) <= 0.05
        for gain, loss in zip(gains[candidates], losses[candidates], strict=True)
    ]
    assert passes.any()
    for rate in (0.0, 0.01, 0.03, 0.06):
        assert table_chances(gains[passes], losses[passes], n, rate, shift).sum() <= 0.05


def test_simulated_false_passes_stay_within_the_nominal_rate():
    n, shift, trials, verdicts = 450, -0.02, 3000, {}
    draws = np.random.default_rng(0).multinomial(n, [0.01, 0.03, 0.96], size=trials)
    passed = 0
    for gain, loss, _ in draws.tolist():
        if (gain, loss) not in verdicts:
            verdicts[gain, loss] = p_value(PairedCounts(gain, loss, n), shift) <= 0.05
        passed += verdicts[gain, loss]
    assert passed / trials <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / trials)


@pytest.mark.parametrize("n", [5, 150, 450])
def test_no_discordant_example_gives_no_point_interval(n):
    low, high = difference_interval(PairedCounts(0, 0, n), 0.95)
    exact = 1 - (0.05 - noninferiority.NUISANCE_ALPHA) ** (1 / n)  # zero losses in n are this likely under that rate
    assert low == pytest.approx(-exact, rel=0.02)
    assert high == -low > 0


@pytest.mark.parametrize(("tolerance", "confidence"), [(0.02, 0.95), (0.01, 0.95), (0.05, 0.9)])
def test_needed_examples_have_a_closed_form(tolerance, confidence):
    alpha = 1 - confidence - noninferiority.NUISANCE_ALPHA
    assert needed_examples(tolerance, confidence) == math.ceil(math.log(alpha) / math.log(1 - tolerance))


def test_verdict_and_interval_agree():
    for losses in range(6):
        counts = PairedCounts(1, losses, 450)
        low, high = difference_interval(counts, 0.95)
        assert low <= counts.difference <= high
        assert (p_value(counts, -0.02) <= 0.05) == (low > -0.02)


def test_more_examples_allow_more_losses():
    assert [allowed_losses(n, 0.02, 0.95) for n in (149, 150, 300, 450, 760)] == [-1, 0, 1, 3, 8]
