"""Model FLOP/s utilisation: what a Transformer's steps need, and what the device could do in that time.

Source: Chowdhery et al. 2022, appendix B, https://arxiv.org/abs/2204.02311
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from components.models.folder import elements
from components.train.device import Precision
from components.train.plan.speed import find_gpu

if TYPE_CHECKING:
    import torch
    from torch import nn

TRAINED_FLOPS = 6
"""A token and a weight: 2 each in the forward pass, for the gradient of its input and for its own."""
FROZEN_FLOPS = 4
PRODUCT_SIZES = {"cpu": 1024, "cuda": 8192}
PRODUCTS = 4


@dataclass(frozen=True)
class Work:
    """The FLOPs of forward and backward pass, without any recomputation.

    Attributes:
        weights: For each token.
        attention: For each pair of tokens of a sample: 12 x layers x width.
        patches: Tokens of an image; 0 for texts.
    """

    weights: float
    attention: float
    patches: int = 0

    def flops(self, inputs: Mapping[str, torch.Tensor]) -> float:
        """Of a micro batch; padding is computed, so it counts."""
        shape = next(iter(inputs.values())).shape
        tokens = self.patches or shape[1]
        return shape[0] * tokens * (self.weights + self.attention * tokens)


def describe_work(module: nn.Module) -> Work | None:
    """The work of a Transformer of one stack; None for other networks, for which no formula is agreed on."""
    from components.models.build import inner_network
    from components.train.plan.network import looked_up_tables

    config: Any = getattr(inner_network(module), "config", None)
    layers, width = getattr(config, "num_hidden_layers", None), getattr(config, "hidden_size", None)
    if layers is None or width is None or config.is_encoder_decoder:
        return None
    tables = {id(table) for table in looked_up_tables(module)}
    weights = sum(
        elements(value) * (TRAINED_FLOPS if value.requires_grad else FROZEN_FLOPS)
        for value in module.parameters()
        if id(value) not in tables
    )
    patch = getattr(config, "patch_size", None)
    patches = (config.image_size // patch) ** 2 + 1 if patch else 0
    return Work(weights, 12 * layers * width, patches)


@dataclass(frozen=True)
class Peak:
    """What a device can do.

    Attributes:
        flops: A second, in products of matrices.
        source: Where the number is from.
    """

    flops: float
    source: str


@cache
def peak_of(device: str, precision: Precision, threads: int) -> Peak:
    """The data sheet's number for a GPU that the planner knows, in half precision; else measured, once a process."""
    import torch

    kind = device.split(":")[0]
    if kind == "cuda" and precision != "fp32":
        gpu = find_gpu(torch.cuda.get_device_name(device))
        if gpu is not None:
            return Peak(gpu.peak_tflops * 1e12, f"data sheet of {torch.cuda.get_device_name(device)}")
    return Peak(measure_products(device, precision), f"measured: {precision} products of matrices, {threads} threads")


def measure_products(device: str, precision: Precision) -> float:
    """FLOPs a second of the quickest of a few products of square matrices."""
    import torch

    kind = device.split(":")[0]
    size = PRODUCT_SIZES[kind]
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    matrix = torch.ones(size, size, dtype=dtype, device=device)
    seconds = []
    for _ in range(PRODUCTS):
        start = time.perf_counter()
        torch.mm(matrix, matrix)
        if kind == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / min(seconds[1:])
