"""Int8 storage for weights that ONNX Runtime's quantiser leaves in float32: word vectors, recurrent layers and others.

An embedding keeps one scale a row, so that a word with small numbers loses nothing to one with large numbers:

    Gather(float32 table, ids)   ->   Cast(Gather(int8 table, ids)) * Gather(scales, ids)

Another weight keeps one scale an output channel and is brought back to float32 where it is used (DequantizeLinear).
The file becomes four times smaller; the arithmetic stays float32.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import onnx

MIN_ELEMENTS = 1024
"""Smaller weights stay float32: the nodes around them would weigh as much as the bytes saved."""
WEIGHT_INPUTS = {"Conv": (0, (1,)), "LSTM": (1, (1, 2)), "GRU": (1, (1, 2))}
"""By operator: the axis of the output channels, and which inputs are weights (ONNX operator schemas)."""


def store_int8(model: onnx.ModelProto, operators: Collection[str]) -> onnx.ModelProto:
    """Stores the large weights of `operators` (Gather, Conv, LSTM, GRU) in int8, in place."""
    weights = {item.name: item for item in model.graph.initializer}
    nodes: list[onnx.NodeProto] = []
    done: dict[str, bool] = {}
    for node in model.graph.node:
        if node.op_type not in operators:
            nodes.append(node)
        elif node.op_type == "Gather":
            nodes.extend(_int8_gather(model, node, weights, done))
        else:
            nodes.extend(_dequantized_inputs(model, node, weights, done))
            nodes.append(node)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    _drop_unused(model)
    return model


def quantize_channels(weight: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """Symmetric int8 codes of `weight` and float32 scales, one an index of `axis`.

    Returns:
        Codes of the shape of `weight`, and scales of shape (weight.shape[axis],).
    """
    import numpy as np

    others = tuple(index for index in range(weight.ndim) if index != axis)
    scales = np.abs(weight).max(axis=others, keepdims=True) / np.float32(127)
    scales = np.where(scales > 0, scales, 1).astype(np.float32)
    return np.clip(np.rint(weight / scales), -127, 127).astype(np.int8), scales.reshape(-1)


def large_float(item: onnx.TensorProto | None) -> np.ndarray | None:
    """The values of a float32 weight with at least MIN_ELEMENTS numbers, else None."""
    from onnx import TensorProto, numpy_helper

    if item is None or item.data_type != TensorProto.FLOAT:
        return None
    values = numpy_helper.to_array(item)
    return values if values.size >= MIN_ELEMENTS else None


def _int8_gather(model: onnx.ModelProto, node: onnx.NodeProto, weights: dict, done: dict) -> list[onnx.NodeProto]:
    from onnx import TensorProto, helper

    table = large_float(weights.get(node.input[0]))
    axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 0)
    if table is None or table.ndim != 2 or axis != 0:
        return [node]
    name, (ids, out) = node.input[0], (node.input[1], node.output[0])
    if name not in done:
        codes, scales = quantize_channels(table, 0)
        _add_weights(model, {f"{name}_int8": codes, f"{name}_scale": scales.reshape(-1, 1)})
        done[name] = True
    return [
        helper.make_node("Gather", [f"{name}_int8", ids], [f"{out}_codes"], axis=0),
        helper.make_node("Cast", [f"{out}_codes"], [f"{out}_float"], to=TensorProto.FLOAT),
        helper.make_node("Gather", [f"{name}_scale", ids], [f"{out}_scales"], axis=0),
        helper.make_node("Mul", [f"{out}_float", f"{out}_scales"], [out]),
    ]


def _dequantized_inputs(
    model: onnx.ModelProto, node: onnx.NodeProto, weights: dict, done: dict
) -> list[onnx.NodeProto]:
    """Points the weights of `node` to DequantizeLinear nodes; gives those that are new.

    A recurrent weight (directions, channels, inputs) of one direction has its scales along axis 1.
    """
    from onnx import helper

    axis, positions = WEIGHT_INPUTS[node.op_type]
    added = []
    for position in positions:
        name = node.input[position]
        values = large_float(weights.get(name))
        if values is None:
            continue
        if name not in done:
            codes, scales = quantize_channels(values, axis)
            _add_weights(model, {f"{name}_int8": codes, f"{name}_scale": scales})
            inputs, outputs = [f"{name}_int8", f"{name}_scale"], [f"{name}_float"]
            added.append(helper.make_node("DequantizeLinear", inputs, outputs, axis=axis))
            done[name] = True
        node.input[position] = f"{name}_float"
    return added


def _add_weights(model: onnx.ModelProto, arrays: dict[str, np.ndarray]) -> None:
    from onnx import numpy_helper

    model.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in arrays.items())


def _drop_unused(model: onnx.ModelProto) -> None:
    used = {name for node in model.graph.node for name in node.input}
    kept = [item for item in model.graph.initializer if item.name in used]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
