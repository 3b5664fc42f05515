"""A language model from the command line: text to trained, measured and asked."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipelines.cli import main

SPEC = {
    "task": "text-generation",
    "data": {"source": "a.txt", "text": {"tokenizer": "byte"}, "split": {"by": "position", "validation": 0.1}},
    "model": {"architecture": "gpt", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2},
    "train": {"seq_len": 16, "max_steps": 12, "validate_every_steps": 5, "global_batch_size": 8, "precision": "fp32"},
    "compress": False,
    "register": False,
    "deploy": False,
}


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict]:
    capsys.readouterr()
    code = main([*arguments, "--json"])
    return code, json.loads(capsys.readouterr().out)


def write_spec(folder: Path, text: str = "to be or not to be, that is the question\n" * 100, **train) -> str:
    (folder / "a.txt").write_text(text)
    path = folder / "tiny.yaml"
    path.write_text(json.dumps({**SPEC, "train": {**SPEC["train"], **train}}))
    return str(path)


def test_from_a_text_to_a_continuation(tmp_path, penstock_home, capsys):
    code, result = run(capsys, "run", write_spec(tmp_path), "--debug")
    assert code == 0, result
    validation, test = (result["model"]["metrics"][name] for name in ("validation", "test"))
    assert set(validation) == {"loss", "perplexity", "accuracy", "bits_per_byte"}
    assert validation["bits_per_byte"] == pytest.approx(validation["loss"] / 0.6931472)  # a byte a token
    assert test["loss"] > 0 and result["baseline"]["kind"] == "n-gram"
    assert result["gate"] is None
    asked = ["predict", result["run_id"], "--input", "to be", "--max-new-tokens", "5", "--seed", "3"]
    texts = [run(capsys, *asked)[1]["predictions"][0]["text"] for _ in range(2)]
    assert texts[0] == texts[1] and texts[0].startswith("to be") and len(texts[0].encode()) >= 6
    code, refused = run(capsys, *asked, "--temperature", "-1")
    assert code == 2 and refused["error"]["field"] == "temperature"


def test_a_text_shorter_than_one_sequence_is_refused_before_training(tmp_path, penstock_home, capsys):
    code, result = run(capsys, "run", write_spec(tmp_path, text="short " * 40, seq_len=200), "--debug")
    assert code == 2
    assert result["error"]["field"] == "train.seq_len"
    assert "train.seq_len" in result["error"]["message"]
