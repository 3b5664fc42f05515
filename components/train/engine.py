"""What the loop needs of whoever holds weights, gradients and optimizer state, and the choice between the two.

One worker without sharding trains in plain torch: DeepSpeed would cost 2 to 4 s of imports and about 1 ms a step there
(see README.md) and shard nothing. Everything else is DeepSpeed's.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

from components.train.config import TrainConfig
from components.train.device import Placement, Precision
from components.train.loss_scale import LossScale

if TYPE_CHECKING:
    import torch
    from torch import nn


class Update(Enum):
    """What became of a step."""

    WAITING = "waiting"
    """More micro batches are to come."""
    TAKEN = "taken"
    SKIPPED = "skipped"
    """The gradient was not finite; the weights are as they were."""
    OVERFLOW = "overflow"
    """The same, but because the loss was scaled too far for fp16; the scale is smaller now."""


class Engine(Protocol):
    """Holds one worker's part of a training. Every rank calls every method equally often."""

    module: nn.Module
    loss_scale: LossScale | None
    """Of fp16."""

    def forward(self, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Logits, float32, shape (B, classes)."""

    def backward(self, loss: torch.Tensor) -> None:
        """Adds the gradient of a micro batch's mean loss."""

    def step(self, learning_rate: float) -> Update:
        """Called after each micro batch; after the last of a step it clips and updates, if the gradient is finite."""

    def write_weights(self, path: Path) -> None:
        """Rank 0 writes the whole state dict in float32 as safetensors."""

    def save(self, folder: Path) -> None:
        """Writes this rank's part of the state into `folder`."""

    def load(self, folder: Path, universal: bool = False) -> None:
        """Reads back what `save` wrote. `folder` must have been verified: it may hold pickles.

        Args:
            universal: Whether it was made by `reshard.make_universal`.
        """

    def close(self) -> None:
        """Gives memory back; the process may train again."""


@dataclass(frozen=True)
class EngineSettings:
    """What an engine is made with, besides the module."""

    train: TrainConfig
    placement: Placement
    precision: Precision
    rank: int
    world_size: int


def judge_step(finite: bool, loss_scale: LossScale | None) -> Update:
    """What became of a step whose gradient is known; moves the scale."""
    if finite:
        if loss_scale is not None:
            loss_scale.grow()
        return Update.TAKEN
    return Update.OVERFLOW if loss_scale is not None and loss_scale.shrink() else Update.SKIPPED


def choose_engine(world_size: int, zero_stage: int) -> Literal["torch", "deepspeed"]:
    return "torch" if world_size == 1 and zero_stage == 0 else "deepspeed"


def build_sharded(settings: EngineSettings) -> AbstractContextManager[None]:
    """Inside, networks from `transformers` are made with sharded weights, where these settings shard them (stage 3)."""
    if settings.train.zero.stage != 3:
        return nullcontext()
    from components.train.deepspeed_engine import sharded_building

    return sharded_building(settings)


def make_engine(module: nn.Module, settings: EngineSettings) -> Engine:
    """The engine for these settings, with the module on its device."""
    if choose_engine(settings.world_size, settings.train.zero.stage) == "torch":
        from components.train.torch_engine import TorchEngine

        return TorchEngine(module, settings)
    from components.train.deepspeed_engine import DeepSpeedEngine

    return DeepSpeedEngine(module, settings)
