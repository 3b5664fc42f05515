"""What this machine lacks for a training, found before anything starts. Light: torch is imported only for a GPU."""

from __future__ import annotations

from components.errors import SpecError
from components.train.compiling import compiler_error
from components.train.config import TrainConfig
from components.train.device import Hardware, detect_hardware, plan_placement
from components.train.nvme import missing_operator, uses_nvme
from components.train.plan.machine import memory_here


def check_machine(train: TrainConfig) -> list[SpecError]:
    """Everything that the `train` section asks for and this machine does not have."""
    errors: list[SpecError] = []
    if uses_nvme(train.zero) and (lacking := missing_operator()) is not None:
        errors.append(lacking)
    if not train.compile and train.precision not in ("fp16", "bf16"):
        return errors
    gpus = 1 if memory_here(1)[0] == "cuda" else 0
    if train.compile and (missing := compiler_error(bool(gpus))) is not None:
        errors.append(missing)
    try:
        plan_placement(detect_hardware() if gpus else Hardware(0, cores=1), train.workers, train.precision)
    except SpecError as error:
        errors.append(error)
    return errors
