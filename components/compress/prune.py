"""Global magnitude pruning: the smallest weights of all layers together become zero.

Zeros alone make no dense file smaller and no CPU faster; pruning shows how much of a network is needed, and its result
is then quantised. The weights of the exported graph are pruned, which gives the numbers that pruning the network with
`torch.nn.utils.prune.global_unstructured` (L1) would give, without a second export of several seconds.
Source: Han et al. 2015, https://arxiv.org/abs/1506.02626
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import onnx

WEIGHT_POSITIONS = {"MatMul": (0, 1), "Gemm": (1,), "Conv": (1,), "LSTM": (1, 2), "GRU": (1, 2)}
"""By operator, the inputs that may be weights. Word vectors are left alone: a rare word's are small but not idle."""


def prune_graph(source: Path, target: Path, percent: int) -> None:
    """Writes the graph `source` with `percent` of its layer weights set to zero."""
    import onnx
    from onnx import numpy_helper

    model = onnx.load(source)
    weights = layer_weights(model)
    arrays = {item.name: numpy_helper.to_array(item) for item in weights}
    limit = magnitude_limit(list(arrays.values()), percent)
    for item in weights:
        values = arrays[item.name]
        item.CopyFrom(numpy_helper.from_array(values * (abs(values) > limit), item.name))
    onnx.save(model, target)


def layer_weights(model: onnx.ModelProto) -> list[onnx.TensorProto]:
    """Float32 matrices and kernels that the layers of a graph multiply by, each once."""
    from onnx import TensorProto

    names = {node.input[position] for node in model.graph.node for position in WEIGHT_POSITIONS.get(node.op_type, ())}
    return [
        item
        for item in model.graph.initializer
        if item.name in names and item.data_type == TensorProto.FLOAT and len(item.dims) >= 2
    ]


def magnitude_limit(arrays: list[np.ndarray], percent: int) -> float:
    """The absolute value up to which weights go, so that `percent` of all of them do; -1 if none should."""
    import numpy as np

    if not arrays:
        return -1.0
    magnitudes = np.concatenate([np.abs(array).ravel() for array in arrays])
    count = round(magnitudes.size * percent / 100)
    return float(np.partition(magnitudes, count - 1)[count - 1]) if count else -1.0
