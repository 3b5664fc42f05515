"""Muon: the momentum of each hidden matrix, made nearly orthogonal, is its update.

Source: Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/; the size of the update is that of Liu et al.
2025, https://arxiv.org/abs/2502.16982. `torch.optim.Muon` takes one matrix at a time, in bf16 everywhere: on a CPU that
does not multiply bf16 it costs as much as the forward and backward pass of a small network. In fp32 every iteration has
coefficients of its own, by which four do what takes five: Amsel et al. 2025, https://arxiv.org/abs/2505.16932.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""In bf16, of the quintic that is iterated, as torch does: it lifts small singular values fast and leaves all between
about 0.7 and 1.2."""
ITERATIONS = 5
FP32_COEFFICIENTS = (
    (8.3419, -24.6047, 18.2295),
    (3.9783, -2.9661, 0.5644),
    (3.3275, -2.4955, 0.5109),
    (2.3084, -1.6759, 0.4196),
)
"""Each the best quintic for what the one before leaves: singular values from 0.004 to 1 end between 0.85 and 1.13."""
FP32_MARGIN = 1.01
"""Beyond 1 they would grow without bounds; bf16 would round some to there."""
EPS = 1e-7


class Muon(torch.optim.Optimizer):
    """Matrices whose shorter sides are equal are updated together.

    Args:
        params: Matrices.
        lr: A step changes an entry by 0.2 x lr in the root mean square, about as AdamW does.
        momentum: Of the gradient's average, which is looked ahead of by one step (Nesterov).
        dtype: What is multiplied: bf16 where the device has it, else fp32.
    """

    def __init__(
        self,
        params: Iterable[torch.nn.Parameter],
        lr: float,
        momentum: float,
        weight_decay: float,
        dtype: torch.dtype,
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self.dtype = dtype

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:
        assert closure is None, "not used here"
        for group in self.param_groups:
            alike: dict[int, list[torch.nn.Parameter]] = {}
            for value in group["params"]:
                if value.grad is not None:
                    alike.setdefault(min(value.shape), []).append(value)
            for values in alike.values():
                self._update(values, group)

    def _update(self, values: list[torch.nn.Parameter], group: dict[str, Any]) -> None:
        for value in values:
            if "momentum_buffer" not in self.state[value]:
                self.state[value]["momentum_buffer"] = torch.zeros_like(value)
        gradients = [value.grad for value in values]
        averages = [self.state[value]["momentum_buffer"] for value in values]
        torch._foreach_lerp_(averages, gradients, 1 - group["momentum"])
        ahead = torch._foreach_lerp(gradients, averages, group["momentum"])
        torch._foreach_mul_(values, 1 - group["lr"] * group["weight_decay"])
        updates = orthogonal([lying(matrix).to(self.dtype) for matrix in ahead])
        for value, update in zip(values, updates, strict=True):
            lying(value).add_(update.to(value.dtype), alpha=-0.2 * group["lr"] * math.sqrt(max(value.shape)))


def lying(matrix: torch.Tensor) -> torch.Tensor:
    """The matrix, or its transpose if it has more rows than columns."""
    return matrix.T if matrix.shape[0] > matrix.shape[1] else matrix


def orthogonal(matrices: list[torch.Tensor]) -> list[torch.Tensor]:
    """Nearly U V^T of each matrix U S V^T, by Newton-Schulz iterations.

    Args:
        matrices: Of the same number of rows, none with fewer columns.
    """
    scaled = [matrix / matrix.norm().clamp(min=EPS) for matrix in matrices]
    if scaled[0].dtype == torch.float32:
        factors = inverse_roots(torch.stack([matrix @ matrix.T for matrix in scaled]) / FP32_MARGIN**2) / FP32_MARGIN
        return [factor @ matrix for factor, matrix in zip(factors, scaled, strict=True)]
    a, b, c = COEFFICIENTS
    for _ in range(ITERATIONS):
        grams = [matrix @ matrix.T for matrix in scaled]
        factors = [torch.addmm(gram, gram, gram, beta=b, alpha=c) for gram in grams]
        scaled = [torch.addmm(matrix, factor, matrix, beta=a) for matrix, factor in zip(scaled, factors, strict=True)]
    return scaled


def inverse_roots(grams: torch.Tensor) -> torch.Tensor:
    """The factors, shape (N, rows, rows), by which the iterations would multiply the matrices of these products.

    All are polynomials of G = X X^T: with X' = P X, G' = P G P. So long matrices are multiplied twice, not eight times,
    and those of all lengths at once. It squares singular values: another thing for which bf16 is too coarse.
    """
    total: torch.Tensor | None = None
    for number, (a, b, c) in enumerate(FP32_COEFFICIENTS, start=1):
        factors = torch.baddbmm(grams, grams, grams, beta=b, alpha=c)
        factors.diagonal(dim1=1, dim2=2).add_(a)
        total = factors if total is None else factors @ total
        if number < len(FP32_COEFFICIENTS):
            grams = factors @ (grams @ factors)
    assert total is not None
    return total
