"""The memory that a worker can have on this machine."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Literal

CGROUP_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
GPU_DEVICE = Path("/dev/nvidia0")


def memory_here(workers: int) -> tuple[Literal["cpu", "cuda"], int]:
    """Device, and bytes of it for each of `workers` workers: a whole GPU, or a share of the machine's memory."""
    if GPU_DEVICE.exists():
        import torch

        if torch.cuda.is_available():
            return "cuda", min(torch.cuda.mem_get_info(index)[1] for index in range(torch.cuda.device_count()))
    return "cpu", machine_bytes() // workers


def machine_bytes() -> int:
    """Memory that this process may use: the machine's, or less where a container sets a limit."""
    import psutil

    limits = [psutil.virtual_memory().total]
    for path in CGROUP_LIMITS:
        with contextlib.suppress(OSError, ValueError):  # "max" is no limit
            limits.append(int(path.read_text()))
    return min(limits)


def gpu_here() -> str | None:
    """The name that torch gives this machine's first GPU, if it has one."""
    if not GPU_DEVICE.exists():
        return None
    import torch

    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else None
