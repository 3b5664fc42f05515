"""Texts of a language model from source to token files."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest

from components.artifacts.dataset import SPLITS, open_tokens
from components.data import drivers, units
from components.data.config import DataConfig
from components.data.stage import check_source
from components.errors import DataError
from components.tasks import get_task
from tests.builders import build_dataset

TASK = "text-generation"
LINES = "".join(f"line {n} says {n * n}, é\n" for n in range(200))


def corpus(tmp_path: Path, source: str, **data):
    values = {"split": {"by": "position", "validation": 0.2, "test": 0.1}, "text": {"tokenizer": "byte"}, **data}
    return build_dataset(tmp_path, source, task=TASK, **values)


def texts(dataset) -> dict[str, str]:
    preprocessing = get_task(TASK).load(dataset.path / "preprocess")
    return {name: preprocessing.decode(open_tokens(dataset.path, name)) for name in SPLITS}


@pytest.mark.parametrize("tokenizer", ["byte", "character", "bpe"])
def test_a_text_is_cut_by_its_characters_and_comes_back(tmp_path, tokenizer):
    (tmp_path / "a.txt").write_text(LINES)
    dataset = corpus(tmp_path, str(tmp_path / "a.txt"), text={"tokenizer": tokenizer, "vocab_size": 300})
    bounds = [0, int(len(LINES) * (1 - 0.2 - 0.1)), int(len(LINES) * (1 - 0.1)), len(LINES)]
    expected = dict(zip(SPLITS, (LINES[a:b] for a, b in itertools.pairwise(bounds)), strict=True))
    if tokenizer == "character":  # digits of the last lines may be new; each text is as long as it was
        assert {name: len(open_tokens(dataset.path, name)) for name in SPLITS} == {
            name: len(text) for name, text in expected.items()
        }
        assert texts(dataset)["train"] == expected["train"]
    else:
        assert texts(dataset) == expected
    schema = dataset.read_json("schema.json")
    assert schema["bytes"] == {name: len(text.encode()) for name, text in expected.items()}
    assert schema["dtype"] == "<u2"


def test_pieces_of_a_large_file_are_the_file(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text(LINES)
    whole = corpus(tmp_path / "whole", str(tmp_path / "a.txt"))
    monkeypatch.setattr(units, "PIECE_BYTES", 777)
    pieces = corpus(tmp_path / "pieces", str(tmp_path / "a.txt"))
    assert pieces.digest == whole.digest


def test_documents_are_shuffled_whole_and_end_with_a_token(tmp_path):
    rows = [f"document {n} " * 5 for n in range(40)]
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"text": row}) for row in [*rows, rows[0], ""]))
    dataset = corpus(tmp_path, str(tmp_path / "a.jsonl"), split={"validation": 0.2, "test": 0.1})
    assert dataset.manifest.metadata["dropped"] == 2  # a copy and an empty one
    end = get_task(TASK).load(dataset.path / "preprocess").end_of_text
    assert dataset.manifest.metadata["documents"] == {
        name: int((open_tokens(dataset.path, name) == end).sum()) for name in SPLITS
    }
    found = sorted(itertools.chain.from_iterable(text_of(dataset, name, end) for name in SPLITS))
    assert found == sorted(rows)
    report = dataset.read_json("report.json")
    assert report["dropped"]["duplicate"] == 1 and report["dropped"]["missing"] == 1


def text_of(dataset, name, end) -> list[str]:
    preprocessing = get_task(TASK).load(dataset.path / "preprocess")
    tokens = open_tokens(dataset.path, name)
    return [
        preprocessing.decode(part[part != end]) for part in np.split(tokens, np.flatnonzero(tokens == end) + 1)[:-1]
    ]


def test_files_are_documents(tmp_path):
    folder = tmp_path / "texts"
    folder.mkdir()
    for n in range(12):
        (folder / f"{n}.txt").write_text(f"file {n}\n" * 10)
    dataset = corpus(tmp_path, str(folder), split={"validation": 0.2, "test": 0.2})
    assert sum(dataset.manifest.metadata["documents"].values()) == 12


def test_ray_gives_the_same_tokens(tmp_path, monkeypatch):
    """The driver only decides where the work is done."""
    (tmp_path / "a.txt").write_text(LINES)
    monkeypatch.setattr(units, "PIECE_BYTES", 777)
    here = corpus(tmp_path / "here", str(tmp_path / "a.txt"))
    seen = []

    def shuffled(items, work):
        seen.append(len(items))
        return drivers.run_here([dict(item) for item in items], work)

    monkeypatch.setattr("components.data.stage.choose_driver", lambda context, size: shuffled)
    assert corpus(tmp_path / "there", str(tmp_path / "a.txt")).digest == here.digest
    assert max(seen) > 1


REFUSED = {
    "one document, split at random": (LINES, {"split": {"by": "random"}}, "data.split.by"),
    "split by group": (LINES, {"split": {"by": "group", "column": "x"}}, "data.split.by"),
    "three characters": ("abc", {"split": {"by": "position", "validation": 0.1, "test": 0.1}}, "data.source"),
    "only white lines and nothing": ("", {}, "data.source"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_divided_is_refused(tmp_path, case):
    content, data, field = REFUSED[case]
    (tmp_path / "a.txt").write_text(content)
    with pytest.raises(DataError) as caught:
        corpus(tmp_path, str(tmp_path / "a.txt"), **data)
    assert caught.value.field == field


def test_check_finds_what_the_stage_would(tmp_path):
    (tmp_path / "a.txt").write_text(LINES)
    (tmp_path / "b.txt").write_bytes(b"\xff\xfe" * 100)
    config = {"source": str(tmp_path / "a.txt"), "split": {"by": "random"}}
    (error,) = check_source(TASK, DataConfig.model_validate(config))
    assert error.field == "data.split.by"
    config = {"source": str(tmp_path / "b.txt"), "split": {"by": "position"}}
    (error,) = check_source(TASK, DataConfig.model_validate(config))
    assert "not UTF-8" in error.message
    (error,) = check_source("text-classification", DataConfig.model_validate({"source": str(tmp_path / "a.txt")}))
    assert "without labels" in error.message


def test_the_standard_library_is_a_corpus():
    from components.data.source import PYTHON_STDLIB, find_source

    source = find_source(PYTHON_STDLIB)
    names = {Path(file.path).name for file in source.files}
    assert source.kind == "text" and len(source.files) > 300 and "argparse.py" in names
    assert not any("site-packages" in file.path for file in source.files)
