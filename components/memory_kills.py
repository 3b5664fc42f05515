"""Processes that the kernel killed because memory ran out: of the whole machine, or of this container's limit.

before = count_kills()
...
if count_kills() > before: raise killed("The training", ...)

Such a process cannot say why it died. The kernel counts it in the control group whose limit was reached, and in all.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

from components.errors import OutOfMemoryError

ROOT = Path("/sys/fs/cgroup")
GIB = 2**30


def count_kills(root: Path = ROOT) -> int:
    """Kills in this process's memory control group (version 2 or 1); 0 where there is none or it does not count."""
    for name in ("memory.events", "memory.oom_control"):
        with contextlib.suppress(OSError):
            for line in (group_folder(root) / name).read_text().splitlines():
                if line.startswith("oom_kill "):
                    return int(line.split()[1])
    return 0


def group_folder(root: Path = ROOT) -> Path:
    """The folder of this process's memory control group; a container may see its own as the root."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        mounted = root / "memory" if controllers else root
        for folder in (mounted / path.lstrip("/"), mounted):
            if (folder / "memory.oom_control").exists() or (folder / "memory.events").exists():
                return folder
    return root


def killed(what: str, root: Path = ROOT) -> OutOfMemoryError:
    """What the user is told of it."""
    folder = group_folder(root)
    limit = read_bytes(folder, "memory.max", "memory.limit_in_bytes")
    peak = read_bytes(folder, "memory.peak", "memory.max_usage_in_bytes")
    most = f" (at most {peak / GIB:.2f} GiB in use)" if peak else ""
    of = f" of {limit / GIB:.2f} GiB" if limit else ""
    return OutOfMemoryError(
        f"{what} was killed by the kernel because the memory limit{of} was reached{most}; raise "
        "train.gradient_accumulation_steps, take a smaller model or more memory, and the same command goes on.",
        field="train.gradient_accumulation_steps",
    )


def read_bytes(folder: Path, *names: str) -> int | None:
    """The first of these files that holds a number; "max" is none."""
    for name in names:
        with contextlib.suppress(OSError, ValueError):
            return int((folder / name).read_text())
    return None
