"""One worker, nothing sharded: plain torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from components.models.folder import named_weights, save_weights
from components.train.compiling import Compiling
from components.train.engine import EngineSettings, Update, judge_step
from components.train.loss_scale import LossScale
from components.train.optimizer import make_optimizer

STATE_NAME = "state.pt"
HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}


class TorchEngine:
    """See `Engine`."""

    def __init__(self, module: nn.Module, settings: EngineSettings) -> None:
        self.module = module.to(settings.placement.device)
        self.optimizer = make_optimizer(settings.train, self.module)
        self.device_type = settings.placement.device.split(":")[0]
        self.half = HALF.get(settings.precision)
        self.loss_scale = LossScale() if settings.precision == "fp16" else None
        self.accumulation = settings.train.gradient_accumulation_steps
        self.clip_norm = settings.train.gradient_clipping
        self.parts = 0
        self.compiling = Compiling(self.module, settings.train.compile)

    def forward(self, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        autocast = torch.autocast(self.device_type, self.half, enabled=self.half is not None)
        with autocast, self.compiling.forward(inputs):
            return self.module(**inputs).float()

    def backward(self, loss: torch.Tensor) -> None:
        scale = 1.0 if self.loss_scale is None else self.loss_scale.scale
        (loss * (scale / self.accumulation)).backward()

    def step(self, learning_rate: float) -> Update:
        self.parts += 1
        if self.parts < self.accumulation:
            return Update.WAITING
        self.parts = 0
        if self.loss_scale is not None:
            unscale(self.module, self.loss_scale)
        norm = nn.utils.clip_grad_norm_(self.module.parameters(), self.clip_norm or math.inf)
        finite = math.isfinite(float(norm))
        if finite:
            for group in self.optimizer.param_groups:
                group["lr"] = learning_rate
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return judge_step(finite, self.loss_scale)

    def write_weights(self, path: Path) -> None:
        save_weights(path, plain_weights(self.module))

    def save(self, folder: Path) -> None:
        save_whole(self.module, self.optimizer, folder)

    def load(self, folder: Path, universal: bool = False) -> None:
        load_whole(self.module, self.optimizer, folder)

    def close(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)


def plain_weights(module: nn.Module) -> dict[str, torch.Tensor]:
    """The state dict, each tensor once, adapters merged into the weights they belong to."""
    weights = named_weights(module)
    if not any(".lora_" in name for name in weights):
        return weights
    from components.models.lora import merge_adapters

    return merge_adapters(module, weights)


def unscale(module: nn.Module, loss_scale: LossScale) -> None:
    """Divides the gradients by what the loss was multiplied with."""
    gradients = [value.grad for value in module.parameters() if value.grad is not None]
    torch._foreach_mul_(gradients, 1 / loss_scale.scale)


def save_whole(module: nn.Module, optimizer: torch.optim.Optimizer, folder: Path) -> None:
    """Writes weights and optimizer state that are sharded over no workers: any number can read them."""
    torch.save({"module": module.state_dict(), "optimizer": optimizer.state_dict()}, folder / STATE_NAME)


def load_whole(module: nn.Module, optimizer: torch.optim.Optimizer, folder: Path) -> None:
    """Reads what `save_whole` wrote."""
    state = torch.load(folder / STATE_NAME, map_location="cpu", weights_only=True)
    module.load_state_dict(state["module"])
    optimizer.load_state_dict(state["optimizer"])
