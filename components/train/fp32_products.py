"""bf16 on a CPU that multiplies fp32 faster: what is kept is bf16, what is multiplied is fp32.

Without a matrix unit for it a CPU takes longer for products of bf16 than of fp32. There linear layers and attention
take and give bf16 as autocast has it, and autograd keeps nothing wider; but their products are made in fp32, and with
the weights as they are. So bf16 takes hardly more time than fp32. What is widened leaves holes in the heap, so that it
saves little memory either (measured: about as much as fp32); memory kept for what is widened made the peak smaller for
some networks and larger for others.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn import functional

PROBE_SHAPE = (512, 512, 512)
WARM_UP = 2
PROBE_PAIRS = 9
MARGIN = 1.2
"""fp32 must be this much faster: a choice within the noise of a clock would not be the same twice."""
without_autocast = partial(torch.autocast, "cpu", enabled=False)


def multiplies_fp32_faster() -> bool:
    """Whether a core of this CPU is done sooner with a product of bf16 that it widens first.

    Both are timed in turn, since a machine's pace may change, and the quickest of each counts, since other processes
    only slow them down; on one core, since threads that wait for one another on a busy machine time that. The memory
    is there already: a process that has just begun would time its first pages.
    """
    rows, inner, columns = PROBE_SHAPE
    left, right = torch.ones(rows, inner, dtype=torch.bfloat16), torch.ones(inner, columns, dtype=torch.bfloat16)
    result = torch.empty(rows, columns, dtype=torch.bfloat16)
    wide_left, wide_right, wide_result = left.float(), right.float(), result.float()

    def widened() -> None:
        wide_left.copy_(left)
        wide_right.copy_(right)
        result.copy_(torch.mm(wide_left, wide_right, out=wide_result))

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        pairs = [
            (seconds(lambda: torch.mm(left, right, out=result)), seconds(widened)) for _ in range(WARM_UP + PROBE_PAIRS)
        ]
    finally:
        torch.set_num_threads(threads)
    narrow_s, wide_s = (min(times) for times in zip(*pairs[WARM_UP:], strict=True))
    return narrow_s > MARGIN * wide_s


def seconds(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def multiply_in_fp32(module: nn.Module) -> None:
    """Makes the linear layers and the attention inside `module` do so under autocast to bf16.

    Names and values of weights stay as they are; without autocast nothing changes.
    """
    from_transformers = False
    for part in module.modules():
        if type(part) is nn.Linear:
            part.__class__ = Linear
        from_transformers |= hasattr(part, "set_attn_implementation")
    if from_transformers:
        from components.train.fp32_attention import widen_transformers

        widen_transformers(module)


class Linear(nn.Linear):
    """`nn.Linear`, with the product in fp32 under autocast."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if not torch.is_autocast_enabled("cpu"):
            return super().forward(input)
        return Product.apply(input, self.weight, self.bias, False)


class Product(torch.autograd.Function):
    """inputs (..., I) times weight (O, I), or (I, O) if `by_columns`, plus bias (O), as bf16 (..., O).

    The inputs are rounded to bf16, and kept so for the backward pass; the weight is not rounded. Autocast is off in
    both directions: code is generated for the backward pass with what holds in the forward pass.
    """

    @staticmethod
    def forward(
        ctx: Any, inputs: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, by_columns: bool
    ) -> torch.Tensor:
        rounded = inputs.bfloat16()
        ctx.save_for_backward(rounded, weight)
        ctx.by_columns, ctx.dtype = by_columns, inputs.dtype
        with without_autocast():
            return functional.linear(rounded.float(), weight.t() if by_columns else weight, bias).bfloat16()

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        rounded, weight = ctx.saved_tensors
        to_inputs = to_weight = to_bias = None
        with without_autocast():
            gradient = gradients[0].float()
            rows, columns = rounded.float().flatten(0, -2), gradient.flatten(0, -2)
            if ctx.needs_input_grad[0]:
                to_inputs = (gradient @ (weight.t() if ctx.by_columns else weight)).to(ctx.dtype)
            if ctx.needs_input_grad[1]:
                to_weight = rows.t() @ columns if ctx.by_columns else columns.t() @ rows
            if ctx.needs_input_grad[2]:
                to_bias = columns.sum(0)
        return to_inputs, to_weight, to_bias, None
