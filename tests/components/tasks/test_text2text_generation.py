"""Pairs of texts: what is encoded and cut, what the loss counts, and that exact match needs no generation."""

from __future__ import annotations

import math
import pickle

import numpy as np
import pyarrow as pa
import pytest
import torch

from components.errors import ArtifactError, RequestError
from components.models.build import build_model, parse_model_config
from components.models.folder import model_values, named_weights, save_model_folder
from components.models.predictor import load_predictor
from components.tasks import get_task
from components.tasks.base import IGNORED
from components.tasks.config import FeatureConfig

TASK = get_task("text2text-generation")
PAIRS = {"source": ["one two", "drei"], "target": ["1 2", "três é 3"]}


def fit(tokenizer="byte", **text):
    config = FeatureConfig.model_validate({"text": {"tokenizer": tokenizer, "vocab_size": 300, **text}})
    return TASK.fit([pa.table(PAIRS)], (), config)


@pytest.fixture(scope="module")
def predictor(tmp_path_factory):
    """An untrained T5 over bytes, from its folder."""
    folder, preprocessing = tmp_path_factory.mktemp("model"), fit(max_length=16, max_target_length=6)
    config = parse_model_config({"architecture": "t5", "hidden_size": 16, "num_hidden_layers": 1})
    torch.manual_seed(0)
    module = build_model(config, preprocessing.model_inputs(), 0)
    values = model_values(TASK.name, config, preprocessing.model_inputs(), ())
    save_model_folder(folder, values, preprocessing, named_weights(module))
    return load_predictor(folder)


@pytest.mark.parametrize("tokenizer", ["byte", "character", "bpe"])
def test_a_target_comes_back_as_it_was(tokenizer, tmp_path):
    preprocessing = fit(tokenizer)
    preprocessing.save(tmp_path)
    for same in (preprocessing, TASK.load(tmp_path), pickle.loads(pickle.dumps(preprocessing))):
        encoded = same.encode(PAIRS)
        assert [same.decode(tokens) for tokens in encoded["labels"]] == PAIRS["target"]
        assert all(tokens[-1] == same.vocabulary.end_id for tokens in (*encoded["labels"], *encoded["input_ids"]))
        assert same.model_inputs() == preprocessing.model_inputs()


def test_a_text_that_is_cut_has_no_end_and_is_counted():
    preprocessing = fit(max_length=7, max_target_length=4)
    encoded = preprocessing.encode(PAIRS)
    assert [len(tokens) for tokens in encoded["input_ids"]] == [7, 5]  # "one two" fills it, and its end is cut
    assert [len(tokens) for tokens in encoded["labels"]] == [4, 4]
    columns = {name: pa.array(values, pa.list_(pa.int32())) for name, values in encoded.items()}
    assert preprocessing.count_cut(pa.table(columns)) == {"source": 1, "target": 1}
    assert preprocessing.count_cut(pa.table(columns).slice(0, 1)) == {"source": 1, "target": 0}


def test_a_batch_teaches_each_token_from_those_before_it():
    preprocessing = fit()
    encoded = preprocessing.encode(PAIRS)
    inputs, labels = preprocessing.collate(encoded), preprocessing.collate_labels(encoded)
    assert inputs["decoder_input_ids"].shape == labels.shape
    assert (inputs["decoder_input_ids"][:, 0] == preprocessing.vocabulary.padding_id).all()
    assert labels[0].tolist() == [*encoded["labels"][0], *[IGNORED] * (labels.shape[1] - 4)]
    assert inputs["decoder_input_ids"][0, 1:4].tolist() == encoded["labels"][0][:-1]
    assert set(preprocessing.collate(preprocessing.encode({"source": ["a"]}))) == {"input_ids", "attention_mask"}


def test_the_loss_is_the_same_however_rows_are_divided():
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(4, 5, 7, generator=generator), torch.randint(0, 7, (4, 5), generator=generator)
    labels[1, 2:], labels[2, 1:] = IGNORED, IGNORED
    halves = [TASK.loss(logits[part], labels[part], 0.1) for part in (slice(0, 2), slice(2, 4))]
    torch.testing.assert_close(sum(halves) / 2, TASK.loss(logits, labels, 0.1))


def test_metrics_count_tokens_and_whole_targets():
    logits, labels = torch.zeros(2, 3, 5), torch.tensor([[1, 2, 3], [4, 0, IGNORED]])
    logits[0, range(3), [1, 2, 3]] = 10.0  # the first target whole, of the second the last token alone
    logits[1, range(2), [1, 0]] = 10.0
    metrics = TASK.metrics(TASK.outputs(logits, labels).numpy(), np.empty(0))
    nats = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED)
    assert metrics["loss"] == pytest.approx(float(nats))
    assert metrics["perplexity"] == pytest.approx(math.exp(float(nats)))
    assert (metrics["accuracy"], metrics["exact_match"]) == (0.8, 0.5)


def test_exact_match_says_what_greedy_decoding_will_write(predictor):
    """The claim that makes it free: what greedy decoding writes, and that alone, is guessed right token by token."""
    preprocessing, sources = predictor.preprocessing, ["one two", "drei", "vier fünf"]
    batch = preprocessing.collate(preprocessing.encode({"source": sources}))
    from components.models.sampling import Sampling, write_targets

    written = write_targets(predictor, batch, Sampling(max_new_tokens=6, temperature=0))
    end = preprocessing.vocabulary.end_id
    targets = [row[1 : row.index(end, 1) + 1] if end in row[1:] else row[1:] for row in written]
    encoded = {**preprocessing.encode({"source": sources}), "labels": targets}
    logits = torch.from_numpy(predictor.logits(preprocessing.collate(encoded)))
    labels = torch.from_numpy(preprocessing.collate_labels(encoded))
    assert TASK.metrics(TASK.outputs(logits, labels).numpy(), np.empty(0))["exact_match"] == 1.0
    other = labels.clone()
    other[0, 0] = (other[0, 0] + 1) % 256
    assert TASK.metrics(TASK.outputs(logits, other).numpy(), np.empty(0))["exact_match"] == pytest.approx(2 / 3)


def test_answers_are_the_same_alone_and_in_company(predictor):
    sources = ["one two", "a much longer source"]
    together = TASK.answer(predictor, {"source": sources}, {})
    assert together == [TASK.answer(predictor, {"source": [source]}, {})[0] for source in sources]
    assert all(len(answer["text"].encode()) <= 6 * 3 for answer in together)  # U+FFFD has three bytes
    assert len(TASK.answer(predictor, {"source": sources}, {"num_beams": 3, "max_new_tokens": 2})) == 2


def test_drawn_answers_follow_the_seed(predictor):
    asked = {"temperature": 1.5, "seed": 3}
    first = TASK.answer(predictor, {"source": ["one"]}, asked)
    assert first[0] == TASK.answer(predictor, {"source": ["one", "another"]}, asked)[0]
    drawn = {TASK.answer(predictor, {"source": ["one"]}, {**asked, "seed": seed})[0]["text"] for seed in range(4)}
    assert len(drawn) > 1
    with pytest.raises(RequestError, match=r"num_beams is 2; it must be 1 where temperature is not 0"):
        TASK.answer(predictor, {"source": ["one"]}, {**asked, "num_beams": 2})


def test_a_broken_tokenizer_is_told(tmp_path):
    (tmp_path / "preprocessing.json").write_text('{"tokenizer": "bpe", "max_length": 8, "max_target_length": 8}')
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ArtifactError, match="no readable tokenizer"):
        TASK.load(tmp_path)
