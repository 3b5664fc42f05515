from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from components.compress import measure
from components.compress.measure import LATENCY_FILE, measure_once, run_graph

ONE_ROW = [{"x": np.ones((1, 2), np.float32)}]


def write_graph(path, operator: str):
    """A graph of one operator: x (B, 2) -> logits."""
    tensors = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["B", 2]) for name in ("x", "logits")]
    graph = helper.make_graph([helper.make_node(operator, ["x"], ["logits"])], "g", tensors[:1], tensors[1:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


def test_graphs_are_measured_in_turns_with_both_quantiles(tmp_path):
    graphs = {name: write_graph(tmp_path / f"{name}.onnx", name) for name in ("Neg", "Abs")}
    latencies_ms = measure_once(graphs, ONE_ROW, tmp_path)
    assert set(latencies_ms) == {"Neg", "Abs"}
    assert all(0 < latency["p50"] <= latency["p99"] for latency in latencies_ms.values())


def test_resumed_stage_reads_what_was_measured(tmp_path, monkeypatch):
    graphs = {"Neg": write_graph(tmp_path / "neg.onnx", "Neg")}
    first = measure_once(graphs, ONE_ROW, tmp_path)
    monkeypatch.setattr(measure, "measure_latency", lambda *_: pytest.fail("measured again"))
    assert measure_once(graphs, ONE_ROW, tmp_path) == first


@pytest.mark.parametrize("record", ["", "[]", '{"graphs": {"Neg": "other"}, "latency_ms": {}}'])
def test_record_of_other_graphs_or_a_torn_one_is_not_used(tmp_path, record):
    (tmp_path / LATENCY_FILE).write_text(record)
    latencies_ms = measure_once({"Neg": write_graph(tmp_path / "neg.onnx", "Neg")}, ONE_ROW, tmp_path)
    assert latencies_ms["Neg"]["p50"] > 0
    assert json.loads((tmp_path / LATENCY_FILE).read_text())["latency_ms"] == latencies_ms


def test_outputs_that_are_not_finite_are_refused(tmp_path):
    path = write_graph(tmp_path / "log.onnx", "Log")
    with pytest.raises(ValueError, match="not finite"):
        run_graph(path, [{"x": -np.ones((1, 2), np.float32)}])
