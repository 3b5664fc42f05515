"""CPU time of a step of Muon, ours in fp32 and torch's, in turn on one core. `make bench-muon`.

The sixteen hidden matrices of a GPT of width 128 with four blocks; median of `ROUNDS` steps each.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch

from components.train.muon import Muon

ROUNDS = int(os.environ.get("ROUNDS", "15"))
SHAPES = 4 * [(128, 384), (128, 128), (128, 512), (512, 128)]


def make(optimizer: Callable[..., torch.optim.Optimizer], **options: Any) -> torch.optim.Optimizer:
    """The optimizer over matrices that have gradients."""
    matrices = [torch.nn.Parameter(torch.randn(*shape)) for shape in SHAPES]
    for matrix in matrices:
        matrix.grad = torch.randn_like(matrix)
    return optimizer(matrices, lr=0.02, momentum=0.9, weight_decay=0.1, **options)


def step_ms(optimizer: torch.optim.Optimizer) -> float:
    begun_s = time.process_time()
    optimizer.step()
    return 1000 * (time.process_time() - begun_s)


def main() -> None:
    torch.set_num_threads(1)
    ours, theirs = make(Muon, dtype=torch.float32), make(torch.optim.Muon)
    pairs = [(step_ms(ours), step_ms(theirs)) for _ in range(ROUNDS)]
    print(f"Penstock, fp32    {median(mine for mine, _ in pairs):6.1f} ms a step")
    print(f"torch.optim.Muon  {median(other for _, other in pairs):6.1f} ms a step")
    print(f"ratio             {median(mine / other for mine, other in pairs):6.2f}")


if __name__ == "__main__":
    main()
