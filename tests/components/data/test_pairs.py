"""Sources and targets through the data stage: what is merged, what shares a part, what is stored and told."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from components.artifacts import Artifact
from components.artifacts.dataset import SPLITS, open_split
from components.context import read_lines
from components.errors import DataError
from components.tasks import get_task
from components.train.feed import Feed
from tests.builders import build_dataset

TASK = "text2text-generation"


def build(folder: Path, pairs: list[tuple[str | None, str | None]], **data) -> Artifact:
    lines = [json.dumps({"source": source, "target": target}) for source, target in pairs]
    (folder / "a.jsonl").write_text("\n".join(lines))
    return build_dataset(folder, str(folder / "a.jsonl"), task=TASK, **{"text": {"tokenizer": "byte"}, **data})


def numbered(count: int = 40) -> list[tuple[str | None, str | None]]:
    return [(f"source {number}", f"target {number}") for number in range(count)]


def test_a_source_keeps_all_its_targets_and_all_of_them_share_a_part(tmp_path):
    pairs = [*numbered(), *[("source 3", f"another {number}") for number in range(3)], ("source 5", "target 5")]
    dataset = build(tmp_path, pairs, split={"test": 0.2})
    splits = {name: open_split(dataset.path, name) for name in SPLITS}
    assert sum(len(split) for split in splits.values()) == 43  # the last one is an equal pair
    assert dataset.read_json("report.json")["dropped"]["duplicates"] == 1
    holding = [name for name, split in splits.items() if "source 3" in split.column("source")]
    assert len(holding) == 1
    targets = [target for source, target in zip(*(splits[holding[0]].column(role) for role in ("source", "target")),
                                                strict=True) if source == "source 3"]  # fmt: skip
    assert sorted(targets) == ["another 0", "another 1", "another 2", "target 3"]


def test_what_is_stored_and_told(tmp_path):
    pairs = [*numbered(), ("a source that is longer than all the others", "short"), (None, "no source")]
    dataset = build(tmp_path, pairs, text={"tokenizer": "byte", "max_length": 12})
    assert dataset.read_json("schema.json")["encoded"] == ["input_ids", "labels"]
    assert dataset.read_json("schema.json")["classes"] == []
    report = dataset.read_json("report.json")
    assert "classes" not in report and "balance" not in report
    assert report["dropped"]["missing"] == 1
    assert sum(counts["source"] for counts in report["cut"].values()) == 1
    assert sum(counts["target"] for counts in report["cut"].values()) == 0
    texts = [event["text"] for event in read_lines(tmp_path / "run" / "events.jsonl") if "text" in event]
    assert any("Cut 1 sources to the tokens that data.text.max_length allows" in text for text in texts)
    assert not any("classes" in text for text in texts)


def test_rows_are_the_same_in_another_order_of_the_source(tmp_path):
    members = []
    for name, pairs in (("one", numbered()), ("two", numbered()[::-1])):
        (tmp_path / name).mkdir()
        dataset = build(tmp_path / name, pairs, text={"vocab_size": 280})
        members.append({split: sorted(open_split(dataset.path, split).column("target")) for split in SPLITS})
        members[-1]["tokenizer"] = [(dataset.path / "preprocess" / "tokenizer.json").read_text()]
    assert members[0] == members[1]


def test_pairs_are_split_by_position_and_by_group(tmp_path):
    lines = ["source,target,who", *[f"s {number},t {number},{number % 8}" for number in range(40)]]
    (tmp_path / "b.csv").write_text("\n".join(lines))
    for by, name in ((dict(by="position"), "one"), (dict(by="group", column="who"), "two")):
        (tmp_path / name).mkdir()
        dataset = build_dataset(
            tmp_path / name, str(tmp_path / "b.csv"), task=TASK, split=by, text={"tokenizer": "byte"}
        )
        parts = {split: open_split(dataset.path, split).column("source") for split in SPLITS}
        groups = {split: {int(source.split()[1]) % 8 for source in sources} for split, sources in parts.items()}
        if name == "one":
            assert parts["test"] == [f"s {number}" for number in range(36, 40)]
        else:
            assert not groups["train"] & groups["test"] and not groups["train"] & groups["validation"]


def test_a_text_file_is_refused(tmp_path):
    (tmp_path / "a.txt").write_text("no columns here")
    with pytest.raises(DataError, match="a column of sources and one of targets"):
        build_dataset(tmp_path, str(tmp_path / "a.txt"), task=TASK)


def test_streamed_and_kept_batches_are_the_same(tmp_path):
    """Each tensor is cut to the longest row of the batch, sources and targets each by their own."""
    pairs = [(f"source {number}" + " and more" * (number % 4), "t" * (1 + number % 5)) for number in range(40)]
    dataset = build(tmp_path, pairs)
    split, preprocessing = open_split(dataset.path, "train"), get_task(TASK).load(dataset.path / "preprocess")
    kept, streamed = (Feed(split, preprocessing, "cpu", limit) for limit in (1 << 30, 0))
    assert kept.kept is not None and streamed.kept is None
    for rows in (np.array([5, 3, 20]), np.array([0])):
        (inputs, labels), (same_inputs, same_labels) = kept.batch(rows), streamed.batch(rows)
        assert set(inputs) == {"input_ids", "attention_mask", "decoder_input_ids"}
        assert all(torch.equal(inputs[name], same_inputs[name]) for name in inputs)
        assert torch.equal(labels, same_labels)
    assert len(kept.true_labels()) == 0
