"""Metrics of written texts: sacrebleu's own corpus score, and intervals that are never a point."""

import numpy as np
import pytest
from sacrebleu.metrics.bleu import BLEU

from components.evaluate.written import Options, bleu_counts, corpus_bleu, measure_losses, measure_texts

OPTIONS = Options(confidence=0.95, resamples=200, seed=0)
REFERENCES = ["the cat sat on the mat today", "a dog barks at night", "it rains in the north of spain", "nothing new"]
TEXTS = ["the cat sat on a mat today", "a dog barks at the night", "it rains in the north of france", "nothing at all"]


def test_summed_counts_give_the_corpus_score_of_sacrebleu():
    expected = BLEU().corpus_score(TEXTS, [REFERENCES]).score
    assert corpus_bleu(bleu_counts(TEXTS, REFERENCES).sum(axis=0)) == pytest.approx(expected)
    measured = measure_texts(TEXTS, REFERENCES, OPTIONS)
    assert measured["bleu"]["value"] == pytest.approx(expected)
    assert measured["bleu_signature"].startswith("nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp")
    assert measured["bleu"]["method"] == "bootstrap"


@pytest.mark.parametrize(("texts", "share"), [(REFERENCES, 1.0), (["zzz"] * 4, 0.0), (TEXTS, None)])
def test_no_interval_is_a_point(texts, share):
    measured = measure_texts(texts, REFERENCES, OPTIONS)
    for name, top in (("exact_match", 1), ("bleu", 100), ("rouge1", 1), ("rouge2", 1), ("rougeL", 1)):
        value, (low, high) = measured[name]["value"], measured[name]["interval"]
        assert 0 <= low <= value <= high <= top and low < high, name
        if share is not None and name != "rouge2":
            assert value == pytest.approx(share * top)


def test_a_single_example_has_an_interval():
    measured = measure_texts(["a b c d e"], ["a b c d f"], OPTIONS)
    assert measured["n"] == 1
    assert measured["rougeL"]["interval"][1] - measured["rougeL"]["interval"][0] > 0.5


def test_losses_weigh_tokens_not_examples():
    nats, tokens = np.array([1.0, 9.0, 4.0]), np.array([1.0, 3.0, 4.0])
    measured = measure_losses(nats, tokens, OPTIONS)
    assert measured["loss"]["value"] == pytest.approx(14 / 8)
    assert measured["perplexity"]["value"] == pytest.approx(np.exp(14 / 8))
    low, high = measured["loss"]["interval"]
    assert 1.0 <= low < 14 / 8 < high <= 3.0
    assert measured["perplexity"]["interval"] == pytest.approx([np.exp(low), np.exp(high)])
    only = measure_losses(nats[:1], tokens[:1], OPTIONS)["loss"]
    assert only["interval"] == [0.0, 2.0]
