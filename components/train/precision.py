"""`precision: auto` on a CPU: whatever a few probe steps of this very model find faster."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from components.train.device import Placement, Precision
from components.train.feed import Inputs

if TYPE_CHECKING:
    import torch
    from torch import nn

PROBE_STEPS = 3
MARGIN = 1.2
"""bf16 must be this much faster: a choice within the noise of a clock would not be the same twice."""


def choose_precision(
    placement: Placement, module: nn.Module, inputs: Inputs, loss: Callable[[torch.Tensor], torch.Tensor]
) -> dict[str, Any]:
    """The precision to train in and why: {"precision", "reason", "fp32_ms", "bf16_ms"}.

    Nothing of the training changes: the probe works on a copy and puts torch's generator back.
    """
    if placement.precision != "probe":
        return settled(placement.precision, placement, f"set, or the rule for {placement.device}")
    fp32_ms, bf16_ms = (time_steps(module, inputs, loss, precision) for precision in ("fp32", "bf16"))
    faster: Precision = "bf16" if bf16_ms * MARGIN < fp32_ms else "fp32"
    return {
        **settled(faster, placement, "probe steps"), "fp32_ms": round(fp32_ms, 3), "bf16_ms": round(bf16_ms, 3)
    }  # fmt: skip


def settled(precision: Precision, placement: Placement, reason: str) -> dict[str, Any]:
    """A precision and why; with bf16 on a CPU also `products`, the type that is multiplied."""
    chosen = {"precision": precision, "reason": reason}
    if precision != "bf16" or placement.device != "cpu":
        return chosen
    from components.train.fp32_products import multiplies_fp32_faster

    return {**chosen, "products": "fp32" if multiplies_fp32_faster() else "bf16"}


def time_steps(
    module: nn.Module, inputs: Inputs, loss: Callable[[torch.Tensor], torch.Tensor], precision: str
) -> float:
    """Milliseconds of the quickest of a few forward and backward passes on the CPU."""
    import torch

    probe = copy.deepcopy(module).train()
    durations = []
    with torch.random.fork_rng(devices=[]):
        for _ in range(PROBE_STEPS + 1):
            start = time.perf_counter()
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                logits = probe(**inputs).float()
            loss(logits).backward()
            durations.append(time.perf_counter() - start)
    return 1000 * min(durations[1:])
