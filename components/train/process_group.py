"""A group of Ray Train workers that torch connects, launched without torch: only the workers import it.

Ray's TorchTrainer imports torch where it is launched, before the workers do: seconds on each start. Its polite end of
the process group is left out as well: the workers are killed anyway, and a stopped one would have been waited for.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from ray.train._internal.utils import get_address_and_port
from ray.train.backend import Backend, BackendConfig

from components.imports import without_collection

TIMEOUT = timedelta(minutes=30)
"""For one collective operation, a worker's start included; a lost worker is noticed much sooner, by Ray."""


@dataclass
class TorchGroup(BackendConfig):
    """Connects the workers of a group by `torch.distributed`.

    Attributes:
        backend: gloo or nccl.
    """

    backend: str

    @property
    def backend_cls(self) -> type[Backend]:
        return Connecting

    def to_dict(self) -> dict[str, Any]:
        return {"backend": self.backend}


class Connecting(Backend):
    """What the group's leader calls once the workers are there."""

    share_cuda_visible_devices = True
    """A worker sees all GPUs of its machine's workers, as NCCL wants them; `plan_placement` gives it its own."""

    def on_start(self, worker_group: Any, backend_config: TorchGroup) -> None:
        address, port = worker_group.execute_single(0, get_address_and_port)
        worker_group.execute(connect, backend_config.backend, address, port)


def connect(backend: str, address: str, port: int) -> None:
    """Runs in each worker: joins the process group, and tells the libraries by the variables that torchrun sets."""
    import ray.train

    with without_collection():
        import torch.distributed as dist

    ranks = ray.train.get_context()
    os.environ.update(
        MASTER_ADDR=address,
        MASTER_PORT=str(port),
        RANK=str(ranks.get_world_rank()),
        WORLD_SIZE=str(ranks.get_world_size()),
        LOCAL_RANK=str(ranks.get_local_rank()),
        LOCAL_WORLD_SIZE=str(ranks.get_local_world_size()),
        NODE_RANK=str(ranks.get_node_rank()),
    )
    if backend == "nccl":
        # A worker whose peer is gone ends instead of waiting.
        os.environ.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "1")
    dist.init_process_group(backend, timeout=TIMEOUT)
