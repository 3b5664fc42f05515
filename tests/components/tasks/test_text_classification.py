"""Texts to tokens, the same way in training, in workers and in serving."""

import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from components.errors import ArtifactError, RequestError
from components.tasks import get_task
from components.tasks.config import FeatureConfig, TextConfig
from components.tasks.text_classification import TextPreprocessing

TASK = get_task("text-classification")
TEXTS = [
    "The quick brown fox jumps over the lazy dog",
    "Gold prices rise as the dollar falls",
    "The fox, again: rises!",
] * 3

FIT_AND_HASH = """
import hashlib, sys, pathlib
from tests.components.tasks.test_text_classification import fit, TEXTS
texts = TEXTS[::-1] if sys.argv[1] == "reversed" else TEXTS
print(hashlib.sha256(fit(texts).tokenizer.to_str().encode()).hexdigest())
"""


def fit(texts: list[str] | None = None, **text: object) -> TextPreprocessing:
    settings = {"vocab_size": 100, "max_length": 8, **text}
    fitted = TASK.fit([pa.table({"text": texts or TEXTS})], ["a", "b"], FeatureConfig(text=TextConfig(**settings)))
    assert isinstance(fitted, TextPreprocessing)
    return fitted


def tokens(fitted: TextPreprocessing, text: str) -> list[str]:
    return [fitted.tokenizer.id_to_token(token) for token in fitted.encode({"text": [text]})["input_ids"][0]]


def test_the_same_texts_in_any_order_and_process_give_the_same_vocabulary() -> None:
    def fit_elsewhere(order: str) -> str:
        command = [sys.executable, "-c", FIT_AND_HASH, order]
        return subprocess.run(command, check=True, capture_output=True, text=True, cwd=Path(__file__).parents[3]).stdout

    assert fit_elsewhere("forward") == fit_elsewhere("reversed")


def test_a_text_begins_with_cls_ends_with_sep_and_is_cut() -> None:
    found = tokens(fit(), TEXTS[0])
    assert (found[0], found[-1], len(found)) == ("[CLS]", "[SEP]", 8)


def test_case_is_kept_only_on_demand() -> None:
    assert tokens(fit(), "THE FOX") == tokens(fit(), "the fox")
    assert tokens(fit(lowercase=False), "The") != tokens(fit(lowercase=False), "the")


def test_a_text_cannot_name_special_tokens_also_not_after_a_trip_to_a_worker() -> None:
    fitted = fit()
    ids = fitted.encode({"text": ["fox [PAD] [CLS]"]})
    assert ids["input_ids"][0].count(0) == 0
    assert ids["input_ids"][0].count(2) == 1
    assert pickle.loads(pickle.dumps(fitted)).encode({"text": ["fox [PAD] [CLS]"]}) == ids


def test_characters_never_seen_are_unknown() -> None:
    assert "[UNK]" in tokens(fit(), "fox \u732b")


def test_vocabulary_keeps_within_its_size_and_is_told_to_the_network() -> None:
    inputs = fit(vocab_size=60).model_inputs()
    assert inputs == {"vocab_size": 60, "max_length": 8, "pad_token_id": 0}


def test_collate_pads_to_the_longest_of_the_batch() -> None:
    batch = fit().collate({"input_ids": [[2, 9, 3], [2, 9, 9, 9, 3]]})
    assert batch["input_ids"].tolist() == [[2, 9, 3, 0, 0], [2, 9, 9, 9, 3]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]
    assert batch["input_ids"].dtype == batch["attention_mask"].dtype == np.int64


def test_saved_and_loaded_preprocessing_encodes_alike(tmp_path: Path) -> None:
    fitted = fit()
    fitted.save(tmp_path)
    loaded = TASK.load(tmp_path)
    assert loaded == fitted
    assert loaded.encode({"text": TEXTS}) == fitted.encode({"text": TEXTS})
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ArtifactError, match="preprocessing"):
        TASK.load(tmp_path)


def test_a_request_is_preprocessed_exactly_as_the_dataset_was(tmp_path: Path) -> None:
    from components.artifacts.dataset import open_split
    from tests.builders import build_dataset

    rows = "".join(f'"{text} number {n}",{n % 2}\n' for n, text in enumerate(TEXTS * 4))
    (tmp_path / "news.csv").write_text("text,label\n" + rows)
    dataset = build_dataset(tmp_path, str(tmp_path / "news.csv"), text={"vocab_size": 100, "max_length": 16})
    preprocessing, split = TASK.load(dataset.path / "preprocess"), open_split(dataset.path, "train")
    request = preprocessing.parse_inputs(split.column("text"))
    assert preprocessing.encode(request)["input_ids"] == split.take(list(range(len(split))))["input_ids"]


@pytest.mark.parametrize("bad", ["", "  \n", None, 3, float("nan"), ["a"], {"text": "a"}, b"\xff\xfe", "\ud800"])
def test_a_bad_input_is_refused_by_its_index(bad: object) -> None:
    with pytest.raises(RequestError, match=r"inputs\[1\]"):
        fit().parse_inputs(["good", bad])


def test_a_file_must_be_text() -> None:
    assert fit().parse_file("caf\u00e9".encode()) == {"text": ["caf\u00e9"]}
    for content in (b"\xff\xfe", b" "):
        with pytest.raises(RequestError, match="file"):
            fit().parse_file(content)
