"""`train.ema`: an exponential moving average of the weights, which is what is validated and kept.

Source: Polyak and Juditsky 1992; the slower start is that of TensorFlow's ExponentialMovingAverage.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
from torch import nn

from components.models.folder import named_tensors, save_weights
from components.train.torch_engine import copy_to_host

UPDATES = "updates"


class WeightAverage:
    """The average of the weights that are trained, and of the running statistics of normalisations.

    Args:
        module: Whole on this worker, on its device.
        decay: Share of the average that an update keeps, once there were many.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        trained = {id(value) for value in module.parameters() if value.requires_grad} | set(map(id, module.buffers()))
        tensors = named_tensors(module).items()
        self.live = {name: value for name, value in tensors if id(value) in trained and value.is_floating_point()}
        self.values = {name: tensor.detach().clone() for name, tensor in self.live.items()}
        self.decay, self.updates = decay, 0

    @torch.no_grad()
    def update(self) -> None:
        """Moves the average towards the weights after a step; faster at first, when they are far from where they go."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(list(self.values.values()), [tensor.data for tensor in self.live.values()], 1 - decay)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Inside, the module holds the average."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    def _exchange(self) -> None:
        # Storages, not numbers: where an optimizer holds views of the weights, they see them again afterwards.
        for name, tensor in self.live.items():
            tensor.data, self.values[name] = self.values[name], tensor.data

    def hold_state(self, path: Path, copy: bool) -> Callable[[], None]:
        """As `Engine.hold_state`, for one file."""
        state = {**self.values, UPDATES: torch.tensor(self.updates)}
        return partial(save_weights, path, copy_to_host(state) if copy else state)

    def load(self, path: Path) -> None:
        """Reads what `hold_state` wrote."""
        from safetensors.torch import load_file

        loaded = load_file(path)
        self.updates = int(loaded.pop(UPDATES))
        for name, tensor in self.values.items():
            tensor.copy_(loaded[name])
