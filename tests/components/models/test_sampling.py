"""How the next token is drawn."""

import numpy as np
import pytest

from components.errors import RequestError
from components.models.sampling import Sampling, draw, generate

LOGITS = np.log(np.array([0.5, 0.3, 0.15, 0.05]))


def counts(**values):
    generator = np.random.default_rng(0)
    drawn = [draw(LOGITS, Sampling(**values), generator) for _ in range(2000)]
    return np.bincount(drawn, minlength=4) / 2000


def test_temperature_one_draws_as_the_network_says():
    assert counts() == pytest.approx(np.exp(LOGITS), abs=0.04)


def test_temperature_zero_takes_the_likeliest():
    assert counts(temperature=0.0)[0] == 1


def test_top_k_and_top_p_leave_out_the_unlikely():
    assert counts(top_k=2) == pytest.approx([0.625, 0.375, 0, 0], abs=0.04)
    assert counts(top_p=0.7) == pytest.approx([0.625, 0.375, 0, 0], abs=0.04)
    assert counts(top_p=0.1)[0] == 1


class Counting:
    """Says that the next token is the last plus one, and remembers how much it was shown."""

    values = {"inputs": {"max_length": 3}}

    def __init__(self):
        self.seen = []

    def logits(self, batch):
        ids = batch["input_ids"]
        self.seen.append(ids.shape[1])
        return np.eye(10)[(ids + 1) % 10] * 50.0


def test_the_context_slides_and_the_end_of_a_document_ends_the_text():
    predictor = Counting()
    assert generate(predictor, [1, 2], Sampling(max_new_tokens=4)) == [3, 4, 5, 6]
    assert predictor.seen == [2, 3, 3, 3]
    assert generate(predictor, [1, 2], Sampling(max_new_tokens=9), end=6) == [3, 4, 5]


@pytest.mark.parametrize("field", ["max_new_tokens", "temperature", "top_k", "top_p"])
def test_what_is_no_sampling_is_refused(field):
    with pytest.raises(RequestError) as caught:
        Sampling(**{field: -1})
    assert caught.value.field == field
