"""The few things workers say to each other. With one worker nothing is sent and no process group is needed."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import nn


@dataclass(frozen=True)
class Group:
    """The workers of one training.

    Attributes:
        rank: This worker's number.
        world_size: Number of workers.
        device: Where tensors must lie to be sent.
    """

    rank: int
    world_size: int
    device: str

    def barrier(self) -> None:
        """Waits for all workers."""
        import torch.distributed as dist

        if self.world_size > 1:
            dist.barrier()

    def broadcast(self, value: Any) -> Any:
        """Gives every worker the JSON value of rank 0."""
        if self.world_size == 1:
            return value
        import torch
        import torch.distributed as dist

        content = json.dumps(value).encode() if self.rank == 0 else b""
        size = torch.tensor([len(content)], device=self.device)
        dist.broadcast(size, src=0)
        buffer = torch.zeros(int(size), dtype=torch.uint8, device=self.device)
        if self.rank == 0:
            buffer.copy_(torch.frombuffer(bytearray(content), dtype=torch.uint8))
        dist.broadcast(buffer, src=0)
        return json.loads(bytes(buffer.cpu().numpy()))

    def gather_values(self, value: Any) -> list[Any]:
        """Gives every worker the JSON values of all, in rank order."""
        import torch

        content = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        sizes = [int(size) for size in self.gather(torch.tensor(len(content), device=self.device))]
        padded = torch.zeros(max(sizes), dtype=torch.uint8, device=self.device)
        padded[: len(content)] = content.to(self.device)
        rows = self.gather(padded).cpu()
        return [json.loads(bytes(row[:size].numpy())) for row, size in zip(rows, sizes, strict=True)]

    def gather(self, tensor: torch.Tensor) -> torch.Tensor:
        """Stacks the workers' tensors of one shape: (world_size, *shape), in rank order, on every worker."""
        import torch
        import torch.distributed as dist

        if self.world_size == 1:
            return tensor.unsqueeze(0)
        parts = [torch.empty_like(tensor) for _ in range(self.world_size)]
        dist.all_gather(parts, tensor.contiguous())
        return torch.stack(parts)

    def average_buffers(self, module: nn.Module) -> None:
        """Makes the running statistics of normalisations equal on all workers: each saw its own share of the data."""
        if self.world_size == 1:
            return
        import torch.distributed as dist

        for buffer in module.buffers():
            if buffer.is_floating_point():
                dist.all_reduce(buffer)
                buffer.div_(self.world_size)


ALONE = Group(0, 1, "cpu")
"""The only worker of its training."""
