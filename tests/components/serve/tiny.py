"""Tiny models made by hand for the tests of serving and of the registry: one ONNX node or two, no training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa

from components.artifacts import Artifact, write_artifact
from components.context import Context
from components.tasks import get_task
from components.tasks.base import Preprocessing
from components.tasks.config import FeatureConfig, TextConfig

CLASSES = ("down", "level", "up")


def tiny_context(home: Path, run_id: str = "tiny-0001", stage: str = "train") -> Context:
    run_folder = home / "runs" / run_id
    run_folder.mkdir(parents=True, exist_ok=True)
    uri = f"sqlite:///{home}/mlflow.db"
    return Context(run_id, stage, home, run_folder, run_folder, "5" * 64, "0.1.0+test", uri)


def image_preprocessing() -> Preprocessing:
    from components.tasks.image_classification import ImagePreprocessing

    return ImagePreprocessing(CLASSES, 4, 1, (0.5,), (0.25,))


def text_preprocessing() -> Preprocessing:
    rows = [pa.table({"text": ["water flows down the pipe", "gates open wide", "the pipe is level"] * 3})]
    config = FeatureConfig(text=TextConfig(vocab_size=64, max_length=16))
    return get_task("text-classification").fit(rows, CLASSES, config)


def image_graph(seed: int):
    """logits = flatten(pixels) @ weights, weights (16, classes)."""
    from onnx import TensorProto, helper, numpy_helper

    weights = np.random.default_rng(seed).normal(size=(16, len(CLASSES))).astype(np.float32)
    nodes = [
        helper.make_node("Flatten", ["pixel_values"], ["flat"]),
        helper.make_node("MatMul", ["flat", "w"], ["logits"]),
    ]
    inputs = [helper.make_tensor_value_info("pixel_values", TensorProto.FLOAT, ["batch", 1, 4, 4])]
    return nodes, inputs, [numpy_helper.from_array(weights, "w")]


def text_graph(seed: int, vocab_size: int):
    """logits = the sum of one row of weights a token."""
    from onnx import TensorProto, helper, numpy_helper

    weights = np.random.default_rng(seed).normal(size=(vocab_size, len(CLASSES))).astype(np.float32)
    nodes = [
        helper.make_node("Gather", ["w", "input_ids"], ["rows"]),
        helper.make_node("ReduceSum", ["rows", "axis"], ["logits"], keepdims=0),
    ]
    inputs = [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "tokens"])]
    constants = [numpy_helper.from_array(weights, "w"), numpy_helper.from_array(np.array([1]), "axis")]
    return nodes, inputs, constants


def tiny_model(output: Path, context: Context, seed: int = 0, text: bool = False) -> Artifact:
    """A `model` artifact that answers in microseconds."""
    import onnx
    from onnx import TensorProto, helper

    preprocessing = text_preprocessing() if text else image_preprocessing()
    task = "text-classification" if text else "image-classification"
    vocab_size = preprocessing.model_inputs().get("vocab_size", 0)
    nodes, inputs, constants = text_graph(seed, vocab_size) if text else image_graph(seed)
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", len(CLASSES)])
    graph = helper.make_graph(nodes, "tiny", inputs, [logits], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    with write_artifact(str(output), "model", {}, context) as draft:
        onnx.save(model, str(draft.path / "model.onnx"))
        draft.write_json(
            "config.json",
            {
                "task": task,
                "architecture": {"architecture": "mlp"},
                "inputs": preprocessing.model_inputs(),
                "classes": list(CLASSES),
            },
        )
        preprocessing.save(draft.path / "preprocess")
    assert draft.artifact is not None
    return draft.artifact


IMAGE = [[0, 16, 255, 3], [4, 5, 6, 7], [8, 9, 10, 11], [12, 13, 14, 15]]
