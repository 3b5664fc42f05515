"""What the loop needs of whoever holds weights, gradients and optimizer state, and the choice between the two.

One worker that has everything trains in plain torch: there is nobody to share with, and DeepSpeed would cost 2 to 4 s
of imports and a tenth of the speed (see README.md). Everything else is DeepSpeed's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

from components.train.config import TrainConfig
from components.train.device import Placement, Precision
from components.train.loss_scale import LossScale
from components.train.nvme import Swap

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

    def hold_state(self, folder: Path, copy: bool) -> Callable[[], None]:
        """Takes this rank's part of the state; the function that it gives writes it into `folder`, from any thread.

        Args:
            copy: Whether into host memory first, so that training may go on before it is written.
        """

    def load(self, folder: Path, universal: bool = False) -> None:
        """Reads back what `hold_state` wrote. `folder` must have been verified: it may hold pickles.

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
    swap: Swap | None = None
    """Where what is offloaded to NVMe goes."""
    fp32_products: bool = False
    """Whether bf16 is multiplied in fp32; see `fp32_products.py`. ZeRO-3 leaves it out: it gathers weights in bf16."""


def judge_step(finite: bool, loss_scale: LossScale | None) -> Update:
    """What became of a step whose gradient is known; moves the scale."""
    if finite:
        if loss_scale is not None:
            loss_scale.grow()
        return Update.TAKEN
    return Update.OVERFLOW if loss_scale is not None and loss_scale.shrink() else Update.SKIPPED


def choose_engine(train: TrainConfig, world_size: int) -> Literal["torch", "deepspeed"]:
    """Stages 1 and 2 shard what one worker needs whole, so alone they compute what stage 0 does.

    A training that had or may get more workers keeps DeepSpeed's form of the state, which can be divided anew.
    """
    if train.zero.stage == 0:
        return "torch" if world_size == 1 else "deepspeed"
    moved = train.zero.stage == 3 or train.zero.offload_optimizer != "none"
    return "torch" if train.workers == world_size == 1 and not moved else "deepspeed"


def build_sharded(settings: EngineSettings) -> AbstractContextManager[None]:
    """Inside, networks from `transformers` are made with sharded weights, where these settings shard them (stage 3)."""
    if settings.train.zero.stage != 3:
        return nullcontext()
    from components.train.deepspeed_engine import sharded_building

    return sharded_building(settings)


def make_engine(module: nn.Module, settings: EngineSettings) -> Engine:
    """The engine for these settings, with the module on its device."""
    if choose_engine(settings.train, settings.world_size) == "torch":
        from components.train.torch_engine import TorchEngine

        return TorchEngine(module, settings)
    from components.train.deepspeed_engine import DeepSpeedEngine

    return DeepSpeedEngine(module, settings)
