"""Two optimizers that act as one: each has parameters of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


class JoinedOptimizer(torch.optim.Optimizer):
    """Steps both; its groups are theirs, so a learning rate that is set here is set there."""

    def __init__(self, first: torch.optim.Optimizer, second: torch.optim.Optimizer) -> None:
        super().__init__([*first.param_groups, *second.param_groups], {})
        # The very dicts: the base class made shallow copies.
        self.param_groups = [*first.param_groups, *second.param_groups]
        self.members = (first, second)

    def step(self, closure: Callable[[], float] | None = None) -> None:
        assert closure is None, "not used here"
        for member in self.members:
            member.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        for member in self.members:
            member.zero_grad(set_to_none)

    def state_dict(self) -> dict[str, Any]:
        return {f"member{number}": member.state_dict() for number, member in enumerate(self.members)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for number, member in enumerate(self.members):
            member.load_state_dict(state_dict[f"member{number}"])
        self.param_groups = [group for member in self.members for group in member.param_groups]
