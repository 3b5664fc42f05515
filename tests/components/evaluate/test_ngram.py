"""Counts of token sequences as a language model."""

import numpy as np
import pytest

from components.evaluate.ngram import NgramModel


@pytest.mark.parametrize("order", [1, 2, 3, 6])
def test_probabilities_of_all_tokens_sum_to_one(order):
    generator = np.random.default_rng(0)
    model = NgramModel(generator.integers(0, 5, 500), 5)
    model.order = order
    context = generator.integers(0, 5, 8)
    last = [np.exp(-model.losses(np.append(context, token))[-1]) for token in range(5)]
    assert sum(last) == pytest.approx(1.0)


def test_a_pattern_is_learnt_by_the_order_that_sees_it():
    tokens = np.tile([0, 1, 0, 2], 300)  # what follows 0 is known only with the token before it
    model = NgramModel(tokens[:-200], 3).choose_order(tokens[-200:])
    assert model.order >= 3
    assert model.losses(tokens[-200:]).mean() < 0.05
    model.order = 2
    assert model.losses(tokens[-200:]).mean() > 0.3


def test_a_large_vocabulary_does_not_overflow():
    model = NgramModel(np.arange(1000) % 97 * 1_000_003 % 2_000_000, 2_000_000)
    assert len(model.orders) < 5
    assert np.isfinite(model.losses(np.arange(50))).all()
