from __future__ import annotations

import json

import pyarrow.parquet as pq
import pytest

from components.artifacts import Artifact
from components.compress import stage as compress_stage
from components.context import read_lines
from components.evaluate import stage
from tests.builders import build_dataset, make_context
from tests.components.compress.trained import train_model

WORDS = {"sport": "goal match team coach league", "money": "bank stock market profit shares"}


def run_compress(folder, dataset: Artifact, model: Artifact, **section) -> Artifact:
    config = compress_stage.StageConfig(task=dataset.read_json("schema.json")["task"], compress=section)
    inputs = {"dataset": dataset.ref, "model": model.ref}
    return compress_stage.run(config, inputs, str(folder / "compression"), make_context(folder, "compress"))


def run_evaluate(folder, dataset: Artifact, max_drop: float = 0.05, **inputs: Artifact) -> Artifact:
    config = stage.StageConfig.model_validate(
        {
            "task": dataset.read_json("schema.json")["task"],
            "accept": {"max_drop": max_drop},
            "evaluate": {"resamples": 200},
        }
    )
    refs = {"dataset": dataset.ref, **{name: artifact.ref for name, artifact in inputs.items()}}
    return stage.run(config, refs, str(folder / "evaluation"), make_context(folder, "evaluate"))


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """(dataset, trained model, its compression); 150 test rows."""
    folder = tmp_path_factory.mktemp("digits")
    dataset = build_dataset(folder, rows=600, split={"test": 0.25})
    model = train_model(folder, dataset, {"architecture": "mlp"}, steps=150)
    return dataset, model, run_compress(folder, dataset, model, candidates=("int8-dynamic",), accept={"max_drop": 0.1})


def test_all_models_are_measured_and_the_gate_judges_both_parts(digits, tmp_path):
    dataset, model, compression = digits
    artifact = run_evaluate(tmp_path, dataset, model=model, compression=compression, champion=model)
    metrics = artifact.read_json("metrics.json")
    assert set(metrics) == {"trained", "compressed", "champion", "baseline"}
    assert metrics["trained"] == metrics["champion"]  # from encoded and from raw rows alike
    for result in metrics.values():
        for name in ("accuracy", "precision", "recall", "f1"):
            low, high = result["test"][name]["interval"]
            assert low <= result["test"][name]["value"] <= high and low < high
    gate = artifact.read_json("gate.json")
    assert [part["name"] for part in gate["parts"]] == ["compressed-vs-trained", "newcomer-vs-champion"]
    assert gate["passed"] and artifact.manifest.metadata["passed"]
    assert gate["n"] == 150 and gate["tolerance"] == 0.05
    assert artifact.manifest.metadata["baseline"].startswith("pixels")
    assert metrics["baseline"]["test"]["accuracy"]["value"] > 0.85
    assert metrics["trained"]["test"]["accuracy"]["value"] > 0.8


def test_predictions_of_every_example_are_kept(digits, tmp_path):
    dataset, model, _ = digits
    artifact = run_evaluate(tmp_path, dataset, model=model)
    table = pq.read_table(artifact.path / "predictions.parquet").to_pydict()
    assert set(table) == {"id", "label"} | {f"{m}_{c}" for m in ("trained", "baseline") for c in ("predicted", "score")}
    right = sum(a == b for a, b in zip(table["label"], table["trained_predicted"], strict=True))
    assert right / 150 == pytest.approx(artifact.manifest.metadata["metrics"]["trained"]["accuracy"])
    assert len(set(table["id"])) == 150


def test_worse_newcomer_than_the_champion_is_refused(digits, tmp_path):
    dataset, model, _ = digits
    poor = train_model(tmp_path, dataset, {"architecture": "mlp"}, steps=2, seed=1)
    gate = run_evaluate(tmp_path, dataset, model=poor, champion=model).read_json("gate.json")
    assert not gate["passed"] and gate["difference"] < -0.05
    assert [part["name"] for part in gate["parts"]] == ["newcomer-vs-champion"]


def test_too_few_test_rows_are_a_refusal_with_the_number_needed(digits, tmp_path):
    dataset, model, compression = digits
    artifact = run_evaluate(tmp_path, dataset, 0.01, model=model, compression=compression)
    assert not artifact.manifest.metadata["passed"]
    assert "at least 301 are needed" in artifact.read_json("gate.json")["reason"]
    notes = [event.get("text", "") for event in read_lines(tmp_path / "run" / "events.jsonl")]
    assert any(note.startswith("The gate refuses") for note in notes)


def test_nothing_within_tolerance_is_refused_but_measured(digits, tmp_path):
    dataset, model, _ = digits
    section = {"candidates": ("prune-99",), "accept": {"max_drop": 0.001}}
    compression = run_compress(tmp_path, dataset, model, **section)
    artifact = run_evaluate(tmp_path, dataset, model=model, compression=compression)
    assert not artifact.manifest.metadata["passed"]
    assert "No candidate of compress was within tolerance" in artifact.read_json("gate.json")["reason"]
    assert artifact.read_json("metrics.json")["compressed"]["test"]["n"] == 150


def test_text_goes_from_embedding_to_gate_beside_tf_idf(tmp_path):
    source = tmp_path / "texts.jsonl"
    rows = [
        {"text": f"{words.split()[i % 5]} {words.split()[(i * 3 + 1) % 5]} day {i}", "label": label}
        for label, words in WORDS.items()
        for i in range(200)
    ]
    source.write_text("\n".join(json.dumps(row) for row in rows))
    dataset = build_dataset(tmp_path, str(source), text={"vocab_size": 300, "max_length": 8}, split={"test": 0.25})
    model = train_model(tmp_path, dataset, {"architecture": "text-cnn", "embedding_size": 32, "num_filters": 16})
    compression = run_compress(tmp_path, dataset, model, candidates=("int8-dynamic",), accept={"max_drop": 0.1})
    artifact = run_evaluate(tmp_path, dataset, model=model, compression=compression)
    accuracies = {name: flat["accuracy"] for name, flat in artifact.manifest.metadata["metrics"].items()}
    assert accuracies == pytest.approx({"trained": 1, "compressed": 1, "baseline": 1}, abs=0.05)
    assert artifact.manifest.metadata["baseline"].startswith("tf-idf")
    assert artifact.manifest.metadata["passed"]


def test_no_test_rows_give_null_metrics_and_no_gate(tmp_path):
    dataset = build_dataset(tmp_path, rows=200, split={"test": 0})
    model = train_model(tmp_path, dataset, {"architecture": "mlp"}, steps=2)
    artifact = run_evaluate(tmp_path, dataset, model=model)
    assert artifact.read_json("metrics.json") == {"trained": {"test": None}}
    assert artifact.read_json("gate.json") is None
    assert artifact.manifest.metadata["gate"] is None and not artifact.manifest.metadata["passed"]
    assert pq.read_table(artifact.path / "predictions.parquet").num_rows == 0
