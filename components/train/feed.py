"""Batches of a split on the device: from memory where the split fits, else read from the memory-mapped file."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import torch

    from components.artifacts.dataset import Split
    from components.tasks.base import Preprocessing

MEMORY_LIMIT_BYTES = 512 << 20
"""A split whose model inputs take less than this is kept as tensors; the rest streams."""
PROBE_ROWS = 64

Inputs = dict[str, "torch.Tensor"]


class Feed:
    """Gives model inputs and labels of any rows.

    Both ways give the same tensors: kept token ids are cut to the longest text of the batch, as collating would.
    """

    def __init__(
        self, split: Split, preprocessing: Preprocessing, device: str, limit_bytes: int = MEMORY_LIMIT_BYTES
    ) -> None:
        import torch

        self.split, self.preprocessing, self.device = split, preprocessing, device
        self.labels = torch.tensor(split.labels(), dtype=torch.int64).to(device)
        self.kept = self._keep() if self._size_bytes() <= limit_bytes else None
        mask = self.kept.get("attention_mask") if self.kept else None
        self.lengths = None if mask is None else mask.sum(dim=1).cpu().numpy()

    def __len__(self) -> int:
        return len(self.split)

    def batch(self, rows: np.ndarray) -> tuple[Inputs, torch.Tensor]:
        """Model inputs and labels of `rows`, batch first, in their order."""
        import torch

        index = torch.from_numpy(rows).to(self.device)
        if self.kept is None:
            return self._collate(rows), self.labels[index]
        width = None if self.lengths is None else int(self.lengths[rows].max())
        return {name: take(tensor, index, width) for name, tensor in self.kept.items()}, self.labels[index]

    def _collate(self, rows: np.ndarray) -> Inputs:
        import torch

        arrays = self.preprocessing.collate(self.split.take(rows))
        return {name: torch.from_numpy(array).to(self.device) for name, array in arrays.items()}

    def _keep(self) -> Inputs:
        import numpy as np

        return self._collate(np.arange(len(self.split)))

    def _size_bytes(self) -> int:
        """Bytes of the whole split's model inputs, judged by its first rows."""
        import numpy as np

        rows = np.arange(min(PROBE_ROWS, len(self.split)))
        arrays = self.preprocessing.collate(self.split.take(rows))
        return sum(array.nbytes for array in arrays.values()) * len(self.split) // max(1, len(rows))


def take(tensor: torch.Tensor, index: torch.Tensor, width: int | None) -> torch.Tensor:
    rows = tensor.index_select(0, index)
    return rows if width is None else rows[:, :width]
