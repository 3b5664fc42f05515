"""Tokenizers that give back their text, and the metrics of windows."""

import math
import pickle

import numpy as np
import pyarrow as pa
import pytest
import torch

from components.errors import ArtifactError, SpecError
from components.tasks import get_task
from components.tasks.config import FeatureConfig

TASK = get_task("text-generation")
TEXT = "To be, or not to be:\n\tthat is the question — é漢\r\n"


def fit(tokenizer, *texts, vocab_size=300):
    config = FeatureConfig.model_validate({"text": {"tokenizer": tokenizer, "vocab_size": vocab_size}})
    return TASK.fit([pa.table({"text": list(texts)})], (), config)


@pytest.mark.parametrize("tokenizer", ["byte", "character", "bpe"])
def test_a_text_comes_back_as_it_was(tokenizer, tmp_path):
    preprocessing = fit(tokenizer, TEXT)
    preprocessing.save(tmp_path)
    for same in (preprocessing, TASK.load(tmp_path), pickle.loads(pickle.dumps(preprocessing))):
        (ids,) = same.encode({"text": [TEXT]})["input_ids"]
        assert same.decode(ids) == TEXT
        assert max(ids) < same.model_inputs()["vocab_size"]


def test_bytes_are_one_token_each():
    (ids,) = fit("byte").encode({"text": [TEXT]})["input_ids"]
    assert len(ids) == len(TEXT.encode())


def test_the_tokenizer_of_a_pretrained_network_is_taken_with_its_own_end(tmp_path):
    source = fit("bpe", TEXT).vocabulary.tokenizer
    source.add_special_tokens(["</s>"])
    source.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": {"content": "</s>"}}')
    preprocessing = TASK.fit([], (), FeatureConfig.model_validate({"text": {"tokenizer": str(tmp_path)}}))
    assert preprocessing.end_of_text == source.token_to_id("</s>")
    assert preprocessing.encode({"text": [TEXT]}) == fit("bpe", TEXT).encode({"text": [TEXT]})
    preprocessing.save(tmp_path / "kept")
    assert TASK.load(tmp_path / "kept").end_of_text == preprocessing.end_of_text
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": null}')
    with pytest.raises(SpecError, match="names no eos_token"):
        TASK.fit([], (), FeatureConfig.model_validate({"text": {"tokenizer": str(tmp_path)}}))


def test_a_text_cannot_end_a_document():
    for tokenizer in ("byte", "bpe", "character"):
        preprocessing = fit(tokenizer, TEXT)
        (ids,) = preprocessing.encode({"text": ["a <|endoftext|> b"]})["input_ids"]
        assert preprocessing.end_of_text not in ids


def test_metrics_are_means_over_windows():
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(3, 5, 7, generator=generator), torch.randint(0, 7, (3, 5), generator=generator)
    metrics = TASK.metrics(TASK.outputs(logits, labels).numpy(), np.empty(0))
    assert metrics["loss"] == pytest.approx(float(TASK.loss(logits, labels, 0.0)), rel=1e-6)
    assert metrics["perplexity"] == pytest.approx(math.exp(metrics["loss"]))
    assert metrics["accuracy"] == pytest.approx(float((logits.argmax(-1) == labels).float().mean()))


def test_a_broken_tokenizer_is_told(tmp_path):
    (tmp_path / "preprocessing.json").write_text('{"tokenizer": "bpe"}')
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ArtifactError, match="no readable tokenizer"):
        TASK.load(tmp_path)
