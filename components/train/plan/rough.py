"""A quick upper bound of a training's memory, without torch: what is far below the limit needs no closer look."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from components.train.plan.network import Workload

BYTES_PER_PARAMETER = 24
"""Weights, a copy of them, gradients, two moments and a bucket, fp32."""
PARAMETERS_PER_SQUARE = 32
"""Of a layer, in squares of its widest part: a block has fewer, so has a 5 x 5 convolution."""
VALUES_PER_POSITION = 64
"""Kept by a layer for each position, in multiples of its widest part."""
FIXED_BYTES = 2 << 30


def rough_bytes(workload: Workload, micro_batch_size: int) -> int:
    """More than one worker needs, nothing sharded; a few times too much for most networks."""
    sizes = list(whole_numbers(workload.model.model_dump().values()))
    pixels = workload.inputs.get("channels", 0) * workload.inputs.get("image_size", 0) ** 2
    blocks = workload.transformer
    widest = max([*sizes, 4 * blocks.hidden_size if blocks else 0, pixels if blocks is None else 0, 1])
    layers = workload.layers or 2 * len(sizes) + sum(getattr(workload.model, "depths", ()))
    words = workload.inputs.get("vocab_size", 0)
    parameters = PARAMETERS_PER_SQUARE * layers * widest**2 + 2 * widest * (words + workload.tokens)
    positions = micro_batch_size * max(workload.tokens, pixels if blocks is None else 0)
    logits = 6 * words * micro_batch_size * workload.label_tokens if workload.label_tokens > 1 else 0
    values = positions * layers * widest * VALUES_PER_POSITION + logits
    attention = micro_batch_size * workload.tokens**2 * layers * 4 * blocks.num_attention_heads if blocks else 0
    return FIXED_BYTES + BYTES_PER_PARAMETER * parameters + 4 * (values + attention)


def whole_numbers(values: Iterable[Any]) -> Iterable[int]:
    """The integers among values and in the tuples among them."""
    for value in values:
        if isinstance(value, tuple | list):
            yield from whole_numbers(value)
        elif isinstance(value, int) and not isinstance(value, bool):
            yield value
