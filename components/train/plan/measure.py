"""The peak memory of a training as the system saw it, to stand beside the prediction.

watch = MemoryWatch.start()
...
watch.peak_bytes()
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path

OWN_STATUS = Path("/proc/self/status")
CLEAR_REFS = Path("/proc/self/clear_refs")
RESET_PEAK = "5"
"""Written to clear_refs it sets the high-water mark to what is used now (proc(5))."""


@dataclass(frozen=True)
class MemoryWatch:
    """Measures from its start on: on a GPU what torch's allocator gave out, on a CPU what the process held.

    Attributes:
        baseline_bytes: Resident memory at the start.
    """

    baseline_bytes: int

    @classmethod
    def start(cls) -> MemoryWatch:
        import torch

        if torch.cuda.is_initialized():
            torch.cuda.reset_peak_memory_stats()
        with contextlib.suppress(OSError):
            CLEAR_REFS.write_text(RESET_PEAK)
        return cls(status_bytes("VmRSS"))

    def peak_bytes(self) -> int:
        """Most bytes at once since the start, beyond what was there."""
        import torch

        if torch.cuda.is_initialized():
            return torch.cuda.max_memory_allocated()
        return max(0, status_bytes("VmHWM") - self.baseline_bytes)


def status_bytes(name: str) -> int:
    """A size in /proc/self/status; 0 where there is no such file."""
    with contextlib.suppress(OSError):
        for line in OWN_STATUS.read_text().splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) * 1024
    return 0
