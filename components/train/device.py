"""Device, backend, dtype and resources: decided in one function of plain values, then applied."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from components.errors import SpecError

Precision = Literal["fp32", "bf16", "fp16"]


@dataclass(frozen=True)
class Hardware:
    """What there is to train on: of one machine for a worker, of the cluster for the launcher.

    Attributes:
        gpus: GPUs that can be seen.
        cores: Cores that may be used.
        threads: What OMP_NUM_THREADS asks for, or None.
        cpu_bf16: Whether the CPU multiplies bf16 in hardware.
        gpu_bf16: Whether the GPUs do; those before Ampere do not.
    """

    gpus: int
    cores: int
    threads: int | None = None
    cpu_bf16: bool = False
    gpu_bf16: bool = True


def places(machines: Sequence[Hardware], cores: int = 1) -> int:
    """How many workers of so many cores find room, a GPU each where there are GPUs: none reaches over two machines."""
    with_gpus = any(machine.gpus for machine in machines)
    each = ((machine.cores // cores, machine.gpus) for machine in machines)
    return sum(min(by_cores, gpus) if with_gpus else by_cores for by_cores, gpus in each)


def even_share(machines: Sequence[Hardware], workers: int) -> int:
    """Most cores that each of `workers` workers can have, at least 1."""
    most = max((machine.cores for machine in machines), default=1)
    return next((cores for cores in range(most, 1, -1) if places(machines, cores) >= workers), 1)


@dataclass(frozen=True)
class Placement:
    """How a worker runs.

    Attributes:
        device: Name for torch.
        backend: Of the process group.
        precision: `probe` means that a few steps must be timed.
        threads: Of torch, in each worker.
        cpus_per_worker, gpus_per_worker: What Ray is asked for.
    """

    device: str
    backend: Literal["nccl", "gloo"]
    precision: Literal["fp32", "bf16", "fp16", "probe"]
    threads: int
    cpus_per_worker: int
    gpus_per_worker: int


def plan_placement(
    hardware: Hardware, workers: int, precision: Literal["auto", "fp32", "bf16", "fp16"], local_rank: int = 0
) -> Placement:
    """Decides how each of `workers` workers runs; a GPU wherever there is one.

    Raises:
        SpecError: If the device lacks the precision.
    """
    if precision == "fp16" and not hardware.gpus:
        raise SpecError(
            "train.precision is fp16, which is for GPUs, and there is none here; set it to auto, bf16 or fp32.",
            field="train.precision",
        )
    if precision == "bf16" and hardware.gpus and not hardware.gpu_bf16:
        raise SpecError(
            "train.precision is bf16, which this GPU does not have; set it to auto, fp16 or fp32.",
            field="train.precision",
        )
    share = max(1, hardware.cores // workers)
    threads = hardware.threads or share
    if hardware.gpus:
        half: Precision = "bf16" if hardware.gpu_bf16 else "fp16"
        chosen: Precision = half if precision == "auto" else precision
        return Placement(f"cuda:{local_rank % hardware.gpus}", "nccl", chosen, threads, share, 1)
    auto: Literal["probe", "fp32"] = "probe" if hardware.cpu_bf16 else "fp32"
    return Placement("cpu", "gloo", auto if precision == "auto" else precision, threads, share, 0)


def detect_hardware() -> Hardware:
    """What this process can use."""
    import torch

    threads = os.environ.get("OMP_NUM_THREADS", "")
    return Hardware(
        gpus=torch.cuda.device_count() if torch.cuda.is_available() else 0,
        cores=len(os.sched_getaffinity(0)),
        threads=int(threads) if threads.isdigit() and int(threads) > 0 else None,
        gpu_bf16=not torch.cuda.is_available() or torch.cuda.is_bf16_supported(including_emulation=False),
        cpu_bf16=cpu_multiplies_bf16(),
    )


def cpu_multiplies_bf16() -> bool:
    """Whether the CPU multiplies bf16 in hardware; one that does not is many times slower at it than in fp32."""
    import torch

    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def apply_placement(placement: Placement) -> None:
    """Sets torch's threads and the current GPU of this process."""
    import torch

    torch.set_num_threads(placement.threads)
    if placement.device.startswith("cuda"):
        torch.cuda.set_device(placement.device)
