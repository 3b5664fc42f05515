"""One worker that has everything: plain torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from components.models.folder import named_weights, save_weights
from components.train.compiling import Compiling
from components.train.engine import EngineSettings, Update, judge_step
from components.train.fp32_products import multiply_in_fp32
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
        if settings.fp32_products:
            multiply_in_fp32(self.module)
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

    def hold_state(self, folder: Path, copy: bool) -> Callable[[], None]:
        return hold_whole(self.module, self.optimizer, folder, copy)

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


def hold_whole(module: nn.Module, optimizer: torch.optim.Optimizer, folder: Path, copy: bool) -> Callable[[], None]:
    """Weights and optimizer state that are sharded over no workers: any number can read them. See `hold_state`."""
    state = {"module": module.state_dict(), "optimizer": optimizer.state_dict()}
    return partial(write_torch, copy_to_host(state) if copy else state, folder / STATE_NAME)


def write_torch(state: Mapping[str, Any], path: Path) -> None:
    """`torch.save`, failing with the system's own error: given a path, torch does not tell a full disk from others."""
    try:
        with path.open("wb") as handle:
            torch.save(state, handle)
    except RuntimeError as error:
        cause = error.__context__
        if not isinstance(cause, OSError):
            raise
        raise OSError(cause.errno, cause.strerror, str(path)) from error


def copy_to_host(state: Any) -> Any:
    """A copy that stays as it is while training goes on: tensors in host memory, containers as dicts, lists, tuples."""
    if isinstance(state, torch.Tensor):
        return state.detach().to("cpu", copy=True)
    if isinstance(state, Mapping):
        return {name: copy_to_host(value) for name, value in state.items()}
    if type(state) in (list, tuple):
        return type(state)(map(copy_to_host, state))
    return deepcopy(state)


def load_whole(module: nn.Module, optimizer: torch.optim.Optimizer, folder: Path) -> None:
    """Reads what `hold_whole` wrote."""
    state = torch.load(folder / STATE_NAME, map_location="cpu", weights_only=True)
    module.load_state_dict(state["module"])
    optimizer.load_state_dict(state["optimizer"])
