"""Optimizer state, and weights between their uses, on a worker's disk: ZeRO-Infinity, through DeepSpeed's `async_io`.

DeepSpeed reads a sub-group of parameters into locked memory, updates it and writes it back. What it would keep of that
in a checkpoint is neither the step counter nor the small tensors that stay in memory, so checkpoints are ours: for each
worker and sub-group one safetensors file, which any number of workers can read.

Source: Rajbhandari et al. 2021, https://arxiv.org/abs/2104.07857
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.errors import CheckpointError, DiskFullError, SpecError
from components.train.config import ZeroConfig

if TYPE_CHECKING:
    import torch
    from torch import nn

    from components.train.plan.network import Workload

SUB_GROUP_ELEMENTS = 50_000_000
"""Parameters that are updated at once; DeepSpeed's own billion would lock 16 GB of each worker's memory."""
STATE_BUFFERS = 4
"""Locked buffers of a sub-group: weights, gradient and Adam's two moments."""
WEIGHT_BUFFERS = 6
"""Locked buffers for weights on their way to and from the disk: a block's, when they are drawn."""
STATE_FILE_BYTES = 16
"""On the disk for each trained parameter: fp32 weights, gradient and two moments."""
WEIGHT_FILE_BYTES = 4
MOMENTS = ("exp_avg", "exp_avg_sq")
KINDS = ("fp32", *MOMENTS)
FOLDER = "nvme"


@dataclass(frozen=True)
class Swap:
    """Where a worker swaps to.

    Attributes:
        folder: Its own; empty when the training begins.
        largest_share: Elements of its share of the largest tensor.
        most_tensors: Of one module, which are needed at once.
        sub_group: Elements that are updated at once.
    """

    folder: Path
    largest_share: int
    most_tensors: int
    sub_group: int


def sub_group_elements(weights_too: bool, workers: int) -> int:
    """Parameters of a worker's share that are updated at once.

    Where weights are on the disk, too, DeepSpeed locks room for a whole sub-group, all workers' shares of it.
    """
    return max(1, SUB_GROUP_ELEMENTS // workers) if weights_too else SUB_GROUP_ELEMENTS


def uses_nvme(zero: ZeroConfig) -> bool:
    return "nvme" in (zero.offload_optimizer, zero.offload_parameters)


def swap_folder(zero: ZeroConfig, work_folder: Path) -> Path:
    """Where a run's workers swap: each in a folder of its own below this one, which is theirs alone."""
    if zero.nvme_path is None:
        return work_folder / "swap"
    name = hashlib.sha256(str(work_folder.absolute()).encode()).hexdigest()[:16]
    return Path(zero.nvme_path) / f"penstock-{name}"


def nvme_settings(zero: ZeroConfig, swap: Swap) -> dict[str, Any]:
    """What `zero_optimization` gets beside the stage."""
    place = {"device": "nvme", "nvme_path": str(swap.folder)}
    values: dict[str, Any] = {"sub_group_size": swap.sub_group}
    if zero.offload_optimizer == "nvme":
        values["offload_optimizer"] = {**place, "buffer_count": STATE_BUFFERS}
    if zero.offload_parameters == "nvme":
        values["offload_param"] = {
            **place,
            "buffer_count": max(WEIGHT_BUFFERS, swap.most_tensors),
            "buffer_size": swap.largest_share,
            "max_in_cpu": 0,
        }
    return values


def file_bytes(zero: ZeroConfig, parameters: int, workers: int) -> int:
    """What a worker's files take at most."""
    each = (STATE_FILE_BYTES if zero.offload_optimizer == "nvme" else 0) + (
        WEIGHT_FILE_BYTES if zero.offload_parameters == "nvme" else 0
    )
    return each * -(-parameters // workers)


def missing_operator() -> SpecError | None:
    """What is lacking here for DeepSpeed's `async_io`, or None; looks for the file, so that nothing is compiled."""
    extensions = Path(os.environ.get("TORCH_EXTENSIONS_DIR") or Path(sys.prefix) / "torch_extensions")
    found = importlib.util.find_spec("deepspeed")
    package = Path(found.origin).parent if found is not None and found.origin else Path()
    if (extensions / "async_io" / "async_io.so").exists() or any((package / "ops" / "aio").glob("async_io_op*.so")):
        return None
    return SpecError(
        "train.zero.offload_optimizer is nvme, for which DeepSpeed's operator async_io is not built here: it needs "
        "libaio-dev; run `make nvme`, or set the offload to cpu.",
        field="train.zero.offload_optimizer",
    )


def disk_error(zero: ZeroConfig, folder: Path, needed: int) -> SpecError | None:
    """Why the files do not fit where they would go, or None.

    Args:
        zero: Where they go.
        folder: Where they go if it does not say so.
        needed: Bytes of all workers of this machine.
    """
    target = Path(zero.nvme_path) if zero.nvme_path is not None else folder
    existing = next(path for path in (target, *target.absolute().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if needed <= free:
        return None
    return SpecError(room_message(target, needed, free), field="train.zero.nvme_path")


def open_swap(zero: ZeroConfig, folder: Path, rank: int, world_size: int, workload: Workload) -> Swap:
    """Makes a worker's empty folder below the run's; what a killed training left there is removed.

    Raises:
        SpecError: If DeepSpeed's operator is not there.
        DiskFullError: If the disk has no room for the files of this machine's workers.
    """
    from components.train.plan.network import count_parameters

    lacking = missing_operator()
    if lacking is not None:
        raise lacking
    own, sizes = folder / f"rank{rank}", count_parameters(workload)
    for old in [own, *(path for path in folder.glob("rank*") if _rank_of(path) >= world_size)]:
        shutil.rmtree(old, ignore_errors=True)
    own.mkdir(parents=True, mode=0o700)
    here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    needed, free = here * file_bytes(zero, sizes.parameters, world_size), shutil.disk_usage(own).free
    if needed > free:
        raise DiskFullError(room_message(folder, needed, free))
    group = sub_group_elements(zero.offload_parameters == "nvme", world_size)
    return Swap(own, -(-sizes.largest_tensor // world_size), sizes.most_tensors, group)


def _rank_of(path: Path) -> int:
    match = re.fullmatch(r"rank(\d+)", path.name)
    return int(match.group(1)) if match else -1


def room_message(folder: Path, needed: int, free: int) -> str:
    gib = 1 << 30
    return (
        f"Offloading to {folder} takes {needed / gib:.1f} GiB, but {free / gib:.1f} GiB are free there; set "
        "train.zero.nvme_path to a folder on a larger disk, or make room on this one."
    )


def close_folder(own: Path) -> None:
    """Removes a worker's folder, and the run's if no other worker has one there."""
    shutil.rmtree(own, ignore_errors=True)
    with suppress(OSError):  # another worker's is there still, or it removed both
        own.parent.rmdir()


@contextmanager
def fp32_buffers() -> Iterator[None]:
    """Inside, DeepSpeed makes its buffers for weights as wide as these are.

    Where fp16 is not supported it takes bf16 whatever it was told: a conditional expression without brackets, in 0.19.8
    in `Init._set_dtype`.
    """
    import torch
    from deepspeed.runtime.zero.partition_parameters import InsertPostInitMethodToModuleSubClasses as Hooks

    chosen = Hooks._set_dtype
    Hooks._set_dtype = lambda self, config, dtype: setattr(self, "dtype", dtype or torch.float32)
    try:
        yield
    finally:
        Hooks._set_dtype = chosen


def stop_reading_ahead(optimizer: Any) -> None:
    """Weights are read when their module computes.

    Read ahead, a tensor that both passes need soon would be read twice at once: `__prefetch_nvme_param_partitions` of
    DeepSpeed 0.19.8 asks for it twice and fails.
    """
    optimizer._get_param_coordinator()._PartitionedParameterCoordinator__prefetch_nvme = False


def write_swapped(optimizer: Any, names: Mapping[nn.Parameter, str], folder: Path, rank: int) -> None:
    """Writes a worker's share of fp32 weights and moments, a sub-group at a time.

    Args:
        optimizer: DeepSpeed's of stage 3.
        names: Of the parameters.
        folder: Where `FOLDER` is made; one for all workers.
        rank: This worker's.
    """
    from components.models.folder import stream_weights

    target = folder / FOLDER
    target.mkdir(exist_ok=True)
    for number, group in enumerate(optimizer.fp16_groups):
        try:
            shares = _shares(_read_sub_group(optimizer, number), group, optimizer, names)
            shapes = {name: tuple(value.shape) for name, value in shares.items()}
            stream_weights(target / f"rank{rank:05d}-{number:05d}.safetensors", shapes, shares.values())
        finally:  # a full disk is waited for, and then all is written again
            if optimizer._swappable_optimizer_subgroup(number):
                optimizer._release_swap_buffers(number)


def _shares(
    flat: Any, group: list[nn.Parameter], optimizer: Any, names: Mapping[nn.Parameter, str]
) -> dict[str, torch.Tensor]:
    """Each parameter's part of a sub-group in memory, by `KIND/NAME`."""
    kept = {"fp32": flat.data, **{kind: optimizer.state.get(flat, {}).get(kind) for kind in MOMENTS}}
    return {
        f"{kind}/{name}": values[place]
        for kind, values in kept.items()
        if values is not None
        for name, place in _places(group, names)
    }


def read_swapped(optimizer: Any, names: Mapping[nn.Parameter, str], folder: Path, step: int) -> None:
    """Takes a worker's share of what any number of workers wrote, a sub-group at a time.

    Args:
        optimizer: DeepSpeed's of stage 3, its parameters all divided.
        names: Of the parameters.
        folder: That `write_swapped` was given.
        step: Of Adam's counter.

    Raises:
        CheckpointError: If a parameter is not there.
    """
    import torch

    files = list_shares(folder / FOLDER)
    for number, group in enumerate(optimizer.fp16_groups):
        flat = _read_sub_group(optimizer, number)
        state = optimizer.state[flat]
        for kind in KINDS:
            if kind != "fp32" and step == 0:
                continue
            values = flat.data if kind == "fp32" else state.setdefault(kind, torch.zeros_like(flat.data))
            for parameter, (name, place) in zip(group, _places(group, names), strict=True):
                share = read_share(files, f"{kind}/{name}", parameter)
                values[place].zero_()[: share.numel()].copy_(share)
        if step:
            state["step"] = step
        optimizer._reassign_or_swap_out_partitioned_parameters(number)
        optimizer._release_sub_group(number, None)


def _read_sub_group(optimizer: Any, number: int) -> Any:
    """The flat fp32 parameter of a sub-group, with itself and its state in memory."""
    if optimizer._swappable_optimizer_subgroup(number):
        optimizer._optimizer_states_and_gradient_swap_in(number)
    return optimizer.fp32_partitioned_groups_flat[number]


def _places(group: list[nn.Parameter], names: Mapping[nn.Parameter, str]) -> Iterator[tuple[str, slice]]:
    """Name and place of each parameter's share in the flat one."""
    begin = 0
    for parameter in group:
        end = begin + parameter.partition_numel()
        yield names[parameter], slice(begin, end)
        begin = end


def list_shares(folder: Path) -> dict[str, list[Path]]:
    """The files in which the shares of each tensor lie, by rank."""
    from safetensors import safe_open

    found: dict[str, list[Path]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as handle:
            for name in handle.keys():  # noqa: SIM118 (it is no dict)
                found.setdefault(name, []).append(path)
    return found


def read_share(files: Mapping[str, list[Path]], name: str, parameter: nn.Parameter) -> torch.Tensor:
    """The elements of a tensor that this worker holds of it; fewer at its end, where shares are filled up.

    Raises:
        CheckpointError: If it is not there.
    """
    import torch
    from safetensors import safe_open

    if name not in files:
        raise CheckpointError(f"The checkpoint has no {name}; run with --fresh to start anew.")
    wanted: int = parameter.partition_numel()
    first = parameter.ds_zero_partition_rank * wanted
    last = min(first + wanted, parameter.ds_numel)
    parts, begin = [torch.empty(0)], 0
    for path in files[name]:
        with safe_open(path, "pt") as handle:
            share = handle.get_slice(name)
            size = share.get_shape()[0]
            low, high = max(first - begin, 0), min(last - begin, size)
            if low < high:
                parts.append(share[low:high])
            begin += size
    return torch.cat(parts)
