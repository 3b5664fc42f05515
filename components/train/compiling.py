"""`train.compile`: the network's forward and backward pass as generated code (torch.compile)."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from components.errors import SpecError

if TYPE_CHECKING:
    import torch
    from torch import nn

BACKEND = "inductor"


class Compiling:
    """Compiles a module at its first training batch, in place, so that names of weights stay as they are.

    Validations run it as it was written: they are too short to pay for code of their own.
    """

    def __init__(self, module: nn.Module, wanted: bool) -> None:
        self.module, self.wanted, self.compiled = module, wanted, False

    @contextmanager
    def forward(self, inputs: Mapping[str, torch.Tensor]) -> Iterator[None]:
        """Around each forward pass."""
        if not self.wanted:
            yield
            return
        if self.module.training:
            self._compile(inputs)
            yield
            return
        import torch

        with torch.compiler.set_stance("force_eager"):
            yield

    def _compile(self, inputs: Mapping[str, torch.Tensor]) -> None:
        if self.compiled:
            return
        self.compiled = True
        # Texts are as wide as the longest of their batch: code for any width from the start, or a resumed training
        # would run code made for another width than the undisturbed one ran.
        self.module.compile(backend=BACKEND, dynamic=True if "attention_mask" in inputs else None)


def compiler_error(on_gpu: bool) -> SpecError | None:
    """What is lacking here to generate code, or None."""
    if on_gpu:
        missing = None if importlib.util.find_spec("triton") else "the package triton"
    else:
        compiler = os.environ.get("CXX", "g++")
        missing = None if shutil.which(compiler) else f"a C++ compiler ({compiler})"
    if missing is None:
        return None
    return SpecError(
        f"train.compile needs {missing}, which is not here; install it, or set train.compile to false.",
        field="train.compile",
    )
