"""How the next token is drawn."""

import numpy as np
import pytest
import torch

from components.errors import RequestError
from components.models.build import build_model, parse_model_config
from components.models.sampling import NextLogits, Sampling, draw, generate

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


def test_the_end_of_a_document_ends_the_text():
    def last_plus_one(tokens):
        return np.eye(10)[(tokens[-1] + 1) % 10] * 50.0

    assert generate(last_plus_one, [1, 2], Sampling(max_new_tokens=4)) == [3, 4, 5, 6]
    assert generate(last_plus_one, [1, 2], Sampling(max_new_tokens=9), end=6) == [3, 4, 5]


@pytest.mark.parametrize("architecture", ["gpt", "llama"])
def test_kept_keys_and_values_change_no_logit_and_the_context_slides(architecture):
    model = {"architecture": architecture, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(0)
    network = build_model(parse_model_config(model), {"vocab_size": 11, "max_length": 8}, 11).eval()
    seen, tokens = [], [1, 2, 3]
    network.decoder.register_forward_pre_hook(
        lambda _, __, given: seen.append(given["input_ids"].shape[1]), with_kwargs=True
    )
    next_logits = NextLogits(network.decoder, 8)
    for _ in range(7):
        with torch.inference_mode():
            expected = network(torch.tensor([tokens[-8:]]))[0, -1].numpy()
        seen.pop()
        assert next_logits(tokens) == pytest.approx(expected, abs=1e-5)
        tokens.append(int(expected.argmax()))
    assert seen == [3, 1, 1, 1, 1, 1, 8]


@pytest.mark.parametrize("field", ["max_new_tokens", "temperature", "top_k", "top_p"])
def test_what_is_no_sampling_is_refused(field):
    with pytest.raises(RequestError) as caught:
        Sampling(**{field: -1})
    assert caught.value.field == field
