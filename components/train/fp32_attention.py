"""Attention and GPT-2's linear layer of `transformers` with products in fp32; see `fp32_products.py`."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.pytorch_utils import Conv1D

from components.train.fp32_products import Product, without_autocast

NAME = "fp32_products"
BEYOND_THE_KERNEL = ("position_bias", "cache", "softcap")
"""What `transformers` may ask of attention and the CPU's kernel has not."""


def widen_transformers(module: nn.Module) -> None:
    """The part of `multiply_in_fp32` for networks from `transformers`."""
    ALL_ATTENTION_FUNCTIONS.register(NAME, attend)
    ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
    for part in list(module.modules()):
        if type(part) is Conv1D:
            part.__class__ = Columns
        elif hasattr(part, "set_attn_implementation") and part.config._attn_implementation == "sdpa":
            part.set_attn_implementation(NAME)


class Columns(Conv1D):
    """`Conv1D`, which is a linear layer with a weight (I, O), with the product in fp32 under autocast."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not torch.is_autocast_enabled("cpu"):
            return super().forward(x)
        return Product.apply(x, self.weight, self.bias, True)


def attend(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """`transformers`' own function, which this is for whatever has a mask, dropout or a bias by position.

    Args:
        query: (B, heads, T, D); key and value may have fewer heads.

    Returns:
        (B, T, heads, D), and no weights.
    """
    plain = attention_mask is None and not dropout and all(others.get(name) is None for name in BEYOND_THE_KERNEL)
    if not plain or query.dtype is not torch.bfloat16:
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, is_causal, **others)
    shared = query.shape[1] // key.shape[1]
    if shared > 1:
        key, value = key.repeat_interleave(shared, dim=1), value.repeat_interleave(shared, dim=1)
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    return Attention.apply(query, key, value, causal and query.shape[2] > 1, scaling).transpose(1, 2).contiguous(), None


class Attention(torch.autograd.Function):
    """The CPU's flash kernel in fp32; keeps its inputs and its result for the backward pass as bf16."""

    @staticmethod
    def forward(
        ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, causal: bool, scaling: float | None
    ) -> torch.Tensor:
        with without_autocast():
            result, logsumexp = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
                query.float(), key.float(), value.float(), 0.0, causal, scale=scaling
            )
        rounded = result.to(query.dtype)
        ctx.save_for_backward(query, key, value, rounded, logsumexp)
        ctx.causal, ctx.scaling = causal, scaling
        return rounded

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        *kept, logsumexp = ctx.saved_tensors
        with without_autocast():
            found = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
                gradients[0].float(), *(one.float() for one in kept), logsumexp, 0.0, ctx.causal, scale=ctx.scaling
            )
        return *(one.to(torch.bfloat16) for one in found), None, None
