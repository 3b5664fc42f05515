from __future__ import annotations

import numpy as np
import pytest

from components.artifacts import dataset as dataset_module
from components.artifacts import open_artifact
from components.compress import candidates as candidates_module
from components.compress import measure, quantize, stage
from components.compress.config import CompressConfig
from components.context import read_lines
from components.errors import StageError
from components.models.predictor import load_predictor
from tests.builders import build_dataset, make_context
from tests.components.compress.trained import train_model

FIELDS = {"method", "size_bytes", "latency_ms", "metrics", "drop", "accepted", "speedup", "size_ratio", "error"}
CANDIDATES = ("int8-dynamic", "int8-static", "prune-50")


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """(folder, dataset, trained MLP)"""
    folder = tmp_path_factory.mktemp("digits")
    dataset = build_dataset(folder, rows=600)
    return folder, dataset, train_model(folder, dataset, {"architecture": "mlp"})


def compress(digits, tmp_path, **settings):
    _, dataset, model = digits
    section = CompressConfig(**{"candidates": CANDIDATES, "accept": {"max_drop": 0.1}, **settings})
    config = stage.StageConfig(task="image-classification", compress=section)
    inputs = {"dataset": dataset.ref, "model": model.ref}
    return stage.run(config, inputs, str(tmp_path / "compression"), make_context(tmp_path, "compress"))


def test_every_candidate_is_measured_and_the_chosen_model_serves(digits, tmp_path, monkeypatch):
    opened = []
    real = dataset_module.open_split
    monkeypatch.setattr(stage, "open_split", lambda path, name: opened.append(name) or real(path, name))
    artifact = compress(digits, tmp_path)
    assert "test" not in opened
    candidates = artifact.read_json("candidates.json")
    assert [candidate["method"] for candidate in candidates] == ["float32", *CANDIDATES]
    assert all(set(candidate) == FIELDS and candidate["error"] is None for candidate in candidates)
    facts = artifact.manifest.metadata
    assert facts["passed"] and facts["method"] in CANDIDATES
    assert facts["size_ratio"] > 2.5
    served = open_artifact(str(tmp_path / "compression" / "model"), kind="model")
    assert served.digest == facts["model_digest"]
    assert served.read_json("config.json")["method"] == facts["method"]
    events = read_lines(tmp_path / "run" / "events.jsonl")
    assert [event["step"] for event in events if event["kind"] == "progress"] == [1, 2, 3, 4]


def test_served_model_answers_as_measured(digits, tmp_path):
    artifact = compress(digits, tmp_path, candidates=("int8-dynamic",))
    predictor = load_predictor(artifact.path / "model")
    validation = dataset_module.open_split(digits[1].path, "validation")
    rows = measure.Rows(validation, predictor.preprocessing, np.arange(len(validation)))
    logits = np.concatenate([predictor.logits(batch) for batch in rows.batches()])
    accuracy = float((logits.argmax(axis=1) == validation.labels()).mean())
    assert accuracy == pytest.approx(artifact.manifest.metadata["metrics"]["validation"]["accuracy"])


def test_resumed_stage_gives_the_same_artifact_without_measuring_again(digits, tmp_path, monkeypatch):
    first = compress(digits, tmp_path, prefer="latency")
    monkeypatch.setattr(measure, "measure_latency", lambda *_: pytest.fail("measured again"))
    second = compress(digits, tmp_path, prefer="latency")
    assert second.digest == first.digest
    assert second.manifest.metadata == first.manifest.metadata


def test_G3_failing_larger_or_diverging_candidate_is_recorded_and_never_chosen(digits, tmp_path, monkeypatch):
    def fail(*_):
        raise RuntimeError("no such operator\nand more")

    def diverge(work, method):
        real(work, method)
        if method == "prune-50":
            graph = work.graph(method)
            graph.write_bytes(work.graph("float32").read_bytes() + b"\x7a\x00" * 5000)  # an empty doc_string, repeated

    real = candidates_module.make_graph
    monkeypatch.setattr(quantize, "quantize_static", fail)
    monkeypatch.setattr(candidates_module, "make_graph", diverge)
    artifact = compress(digits, tmp_path)
    by_method = {candidate["method"]: candidate for candidate in artifact.read_json("candidates.json")}
    assert by_method["int8-static"]["error"] == "RuntimeError: no such operator"
    assert not by_method["prune-50"]["accepted"] and by_method["prune-50"]["error"]
    assert artifact.manifest.metadata["method"] == "int8-dynamic"
    open_artifact(digits[2].ref, kind="model")  # the original is untouched


def test_none_within_tolerance_keeps_the_best_and_says_so(digits, tmp_path):
    artifact = compress(digits, tmp_path, candidates=("prune-95", "prune-99"), accept={"max_drop": 0.001})
    facts = artifact.manifest.metadata
    assert not facts["passed"]
    drops = {c["method"]: c["drop"] for c in artifact.read_json("candidates.json") if c["method"] != "float32"}
    assert facts["method"] == min(drops, key=drops.get)
    assert load_predictor(artifact.path / "model").classes
    assert any(event["kind"] == "warning" for event in read_lines(tmp_path / "run" / "events.jsonl"))


def test_export_that_computes_something_else_stops_the_stage():
    with pytest.raises(StageError, match="differs from the trained network"):
        stage.check_export(np.zeros((2, 3)), np.full((2, 3), 0.1))
    with pytest.raises(StageError):
        stage.check_export(np.zeros((2, 3)), np.full((2, 3), np.nan))
