"""From a trained network to a lean ONNX graph: the float32 reference that every candidate starts from.

The same network gives the same bytes in every process: what the exporter adds for debugging (the source line of each
node, internal shapes) is taken out. That debugging text would also be a tenth of a small model's size.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import onnx
    from torch import nn

OUTPUT_NAME = "logits"
EXAMPLE_ROWS = 3
"""Rows of the example: with one row the exporter would freeze the batch size to 1."""
ONNX_DOMAINS = ("", "ai.onnx", "com.microsoft")


def export_onnx(module: nn.Module, batch: Mapping[str, np.ndarray], path: Path) -> None:
    """Writes the ONNX graph of `module` in evaluation mode, batch size (and text length) left open.

    Args:
        module: Takes the model inputs by name and gives logits (B, classes).
        batch: Collated model inputs of at least one row; 2-D integer inputs are texts (B, T).
        path: Where the graph goes, weights inside.
    """
    import onnx
    import torch

    names = list(batch)
    example = {name: torch.as_tensor(repeat_rows(array)) for name, array in batch.items()}
    with _quiet_exporter(), torch.no_grad():
        program = torch.onnx.export(
            module.eval(),
            (),
            kwargs=example,
            dynamic_shapes={name: open_dims(array) for name, array in batch.items()},
            input_names=names,
            output_names=[OUTPUT_NAME],
            dynamo=True,
            verbose=False,
        )
    onnx.save(lean(fold_constants(lean(program.model_proto))), path)


def repeat_rows(array: np.ndarray) -> np.ndarray:
    """The first rows of `array`, repeated until there are EXAMPLE_ROWS."""
    import numpy as np

    return np.ascontiguousarray(np.resize(array, (EXAMPLE_ROWS, *array.shape[1:])))


def open_dims(array: np.ndarray) -> dict[int, Any]:
    """Axes that may change: the batch, and the length of a text."""
    from torch.export import Dim

    is_text = array.ndim == 2 and array.dtype.kind == "i"
    return {0: Dim.AUTO, 1: Dim.AUTO} if is_text else {0: Dim.AUTO}


def lean(model: onnx.ModelProto) -> onnx.ModelProto:
    """Takes out, in place, what is not needed to run the graph: debugging text, inner shapes, unused domains."""
    graph = model.graph
    # Stale inner shapes are also what makes quantisation of exported graphs fail (ShapeInferenceError).
    del graph.value_info[:]
    del model.metadata_props[:]
    del graph.metadata_props[:]
    for part in (model, graph):
        part.doc_string = ""
    for item in (*graph.node, *graph.initializer, *graph.input, *graph.output):
        item.doc_string = ""
        del item.metadata_props[:]
    model.producer_name = model.producer_version = ""
    used = {node.domain for node in graph.node} | {function.domain for function in model.functions} | {""}
    kept = [opset for opset in model.opset_import if opset.domain in used]
    del model.opset_import[:]
    model.opset_import.extend(kept)
    return model


def fold_constants(model: onnx.ModelProto) -> onnx.ModelProto:
    """Applies ONNX Runtime's basic rewrites (constant folding, dead nodes), which hold on every machine."""
    import tempfile

    import onnx
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.log_severity_level = 3
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "folded.onnx"
        options.optimized_model_filepath = str(target)
        onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return onnx.load(target)


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Keeps the exporter's hints (absent torchvision, its own deprecations) out of the user's sight."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
