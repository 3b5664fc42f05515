"""What this machine lacks for a training, found before anything starts. Light: torch is imported only for a GPU."""

from __future__ import annotations

from components.errors import SpecError
from components.train.compiling import compiler_error
from components.train.config import TrainConfig
from components.train.plan.machine import memory_here


def check_machine(train: TrainConfig) -> list[SpecError]:
    """Everything that the `train` section asks for and this machine does not have."""
    if not train.compile:
        return []
    on_gpu = memory_here(1)[0] == "cuda"
    errors = [compiler_error(on_gpu)]
    return [error for error in errors if error is not None]
