"""Export, pruning and quantisation over every kind of layer: attention, convolution, recurrence, embedding."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from components.compress.measure import run_graph
from components.compress.prune import layer_weights, prune_graph
from components.compress.quantize import quantize_dynamic, quantize_static
from components.compress.weights import quantize_channels
from tests.components.compress.graphs import TEXT_NETWORKS, export_network, make_batch, make_network, torch_logits

NETWORKS = {
    "vit": {"patch_size": 2, "hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 1},
    "cnn": {"channels": (16, 32)},
    "bert": {"hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 1},
    "text-cnn": {"embedding_size": 32, "num_filters": 16},
    "lstm": {"embedding_size": 32, "hidden_size": 32},
    "gru": {"embedding_size": 32, "hidden_size": 32, "bidirectional": False},
}


@pytest.fixture(scope="module", params=list(NETWORKS))
def exported(request, tmp_path_factory):
    """(architecture, network, path of its float32 graph)"""
    path = tmp_path_factory.mktemp("graphs") / "float32.onnx"
    return request.param, export_network(request.param, path, **NETWORKS[request.param]), path


def test_graph_computes_what_the_network_does_at_other_sizes(exported):
    architecture, network, path = exported
    for rows, length in ((1, 1), (1, 5), (7, 16)):
        batch = make_batch(architecture, rows, length)
        assert np.allclose(run_graph(path, [batch]), torch_logits(network, batch), atol=1e-5)


def test_int8_is_smaller_and_close(exported, tmp_path):
    architecture, network, path = exported
    batches = [make_batch(architecture, 8, length) for length in (4, 9, 16)]
    expected = np.concatenate([torch_logits(network, batch) for batch in batches])
    dynamic, static = tmp_path / "dynamic.onnx", tmp_path / "static.onnx"
    quantize_dynamic(path, dynamic)
    quantize_static(path, static, batches)
    for quantised in (dynamic, static):
        assert quantised.stat().st_size < path.stat().st_size / 1.5  # small networks: the graph itself weighs too
        # 8 bits leave about 1/127 of the range per product; a few layers on top of each other a few times that.
        assert np.abs(run_graph(quantised, batches) - expected).max() < 0.15 * np.ptp(expected)


def test_embedding_is_stored_in_int8_one_scale_a_row(exported, tmp_path):
    architecture, _, path = exported
    if architecture not in TEXT_NETWORKS:
        pytest.skip("no embedding")
    quantize_dynamic(path, tmp_path / "dynamic.onnx")
    weights = onnx.load(tmp_path / "dynamic.onnx").graph.initializer
    assert not [
        item.name
        for item in weights
        if 300 in item.dims and item.data_type == onnx.TensorProto.FLOAT and np.prod(item.dims) > 300
    ]
    assert [item.name for item in weights if list(item.dims) == [300, 32] and item.data_type == onnx.TensorProto.INT8]


def test_no_debugging_text_is_left(exported):
    model = onnx.load(exported[2])
    assert not model.graph.value_info and not model.metadata_props and not model.producer_version
    assert not any(node.metadata_props or node.doc_string for node in model.graph.node)
    assert {opset.domain for opset in model.opset_import} == {""}


def test_same_network_gives_the_same_bytes_in_another_process(tmp_path):
    here, there = tmp_path / "here.onnx", tmp_path / "there.onnx"
    export_network("mlp", here)
    command = [sys.executable, "-m", "tests.components.compress.graphs", "mlp", str(there)]
    subprocess.run(command, check=True, cwd=Path(__file__).parents[3], capture_output=True)
    assert here.read_bytes() == there.read_bytes()
    for source in (here, there):
        quantize_dynamic(source, source.with_suffix(".int8"))
        quantize_static(source, source.with_suffix(".qdq"), [make_batch("mlp", 16)])
    for suffix in (".int8", ".qdq"):
        assert here.with_suffix(suffix).read_bytes() == there.with_suffix(suffix).read_bytes()


def test_pruning_equals_torch_global_magnitude_pruning(tmp_path):
    import torch
    from torch.nn.utils import prune

    export_network("mlp", tmp_path / "float32.onnx")
    prune_graph(tmp_path / "float32.onnx", tmp_path / "pruned.onnx", 60)
    weights = layer_weights(onnx.load(tmp_path / "pruned.onnx"))
    zeros = sum(int((numpy_helper.to_array(item) == 0).sum()) for item in weights)
    assert zeros == round(0.6 * sum(int(np.prod(item.dims)) for item in weights))

    network = make_network("mlp")
    layers = [(module, "weight") for module in network.modules() if isinstance(module, torch.nn.Linear)]
    prune.global_unstructured(layers, prune.L1Unstructured, amount=0.6)
    batch = make_batch("mlp", 5)
    assert np.allclose(run_graph(tmp_path / "pruned.onnx", [batch]), torch_logits(network, batch), atol=1e-6)


def test_each_channel_is_off_by_half_a_step_at_most():
    weight = np.random.default_rng(0).standard_normal((4, 6, 5)).astype(np.float32) * [[[1]], [[1e-3]], [[50]], [[0]]]
    codes, scales = quantize_channels(weight.astype(np.float32), 0)
    assert (np.abs(codes * scales.reshape(4, 1, 1) - weight).max(axis=(1, 2)) <= scales / 2 + 1e-7).all()
    assert codes.dtype == np.int8 and codes.shape == weight.shape
