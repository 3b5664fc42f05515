"""Int8 quantisation of an ONNX graph on the CPU.

int8-dynamic   matrix products in int8, the scale of the activations found anew in each batch
int8-static    matrix products and convolutions in int8 (QDQ), the scales of the activations measured on training rows

In both, weights have one scale an output channel, and what stays in float arithmetic (word vectors, recurrent layers)
is stored in int8 (`weights.py`). Source: ONNX Runtime, https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from components.compress.export import lean
from components.compress.weights import store_int8

if TYPE_CHECKING:
    import numpy as np
    import onnx

DYNAMIC_OPERATORS = ["MatMul", "Gemm", "LSTM"]
STATIC_OPERATORS = ["MatMul", "Gemm", "Conv"]


def quantize_dynamic(source: Path, target: Path) -> None:
    """Writes the int8-dynamic form of the float32 graph `source`."""
    from onnxruntime.quantization import QuantType
    from onnxruntime.quantization import quantize_dynamic as quantize

    # ConvInteger is slower than float on most CPUs: convolutions are only stored in int8.
    with _prepared(source, ["Gather", "Conv", "GRU"]) as model:
        quantize(model, target, DYNAMIC_OPERATORS, per_channel=True, weight_type=QuantType.QInt8)
    finish(target)


def quantize_static(source: Path, target: Path, batches: Iterable[Mapping[str, np.ndarray]]) -> None:
    """Writes the int8-static form of the float32 graph `source`.

    Args:
        batches: Collated model inputs of training rows, on which the ranges of the activations are measured.
    """
    from onnxruntime.quantization import QuantFormat, QuantType
    from onnxruntime.quantization import quantize_static as quantize

    with _prepared(source, ["Gather", "LSTM", "GRU"]) as model:
        quantize(
            model,
            target,
            calibration_reader(batches),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=STATIC_OPERATORS,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            # Products of two activations (attention) stay float: they cost much accuracy and hold no weights.
            extra_options={"MatMulConstBOnly": True},
        )
    finish(target)


def calibration_reader(batches: Iterable[Mapping[str, np.ndarray]]) -> object:
    """What ONNX Runtime asks for the next batch until there is none."""
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.rest = iter(batches)

        def get_next(self) -> dict[str, np.ndarray] | None:
            batch = next(self.rest, None)
            return None if batch is None else dict(batch)

    return Reader()


def finish(path: Path) -> None:
    """Takes out of a quantised graph what is not needed to run it."""
    import onnx

    onnx.save(lean(onnx.load(path)), path)


@contextmanager
def _prepared(source: Path, stored: list[str]) -> Iterator[onnx.ModelProto]:
    import onnx

    model = store_int8(onnx.load(source), stored)
    # The mark by which ONNX Runtime knows a graph that was cleaned beforehand, as `export.py` did.
    model.metadata_props.add(key="onnx.quant.pre_process", value="onnxruntime.quant")
    # What it then logs on the root logger is about weights that are int8 already, on purpose.
    root = logging.getLogger()
    root.addFilter(_is_error)
    try:
        yield model
    finally:
        root.removeFilter(_is_error)


def _is_error(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR
