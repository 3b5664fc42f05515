"""Batches on the device: `Feed` of rows with labels or targets, `TokenFeed` of windows of a language model's tokens.

Both know their samples by numbers, which `epoch_order` of `order.py` puts into the order of training.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from components.tasks.base import IGNORED

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
    """Gives model inputs and labels of any rows: from memory where the split fits, else from the memory-mapped file.

    Both ways give the same tensors: kept token ids are cut to the longest text of the batch, as collating would.

    Attributes:
        label_tokens: Labels of a row at most; 1 for a class.
    """

    def __init__(
        self, split: Split, preprocessing: Preprocessing, device: str, limit_bytes: int = MEMORY_LIMIT_BYTES
    ) -> None:
        import numpy as np
        import torch

        self.split, self.preprocessing, self.device = split, preprocessing, device
        self.classes = torch.tensor(split.labels(), dtype=torch.int64).to(device) if split.has_labels else None
        self.kept = self._collate(np.arange(len(split))) if self._size_bytes() <= limit_bytes else None
        self.lengths = sequence_lengths(*self.kept) if self.kept else {}
        self.label_tokens = preprocessing.model_inputs().get("max_target_length", 1)

    def __len__(self) -> int:
        return len(self.split)

    def true_labels(self) -> np.ndarray:
        """Class indices of all rows; none where the labels are part of what is run."""
        import numpy as np

        return self.split.labels() if self.classes is not None else np.empty(0, np.int64)

    def start_epoch(self, seed: int, epoch: int) -> None:
        """Rows are the same in every epoch."""

    def batch(self, rows: np.ndarray) -> tuple[Inputs, torch.Tensor]:
        """Model inputs and labels of `rows`, batch first, in their order."""
        if self.kept is None:
            return self._collate(rows)
        index = to_device(rows, self.device)
        widths = {name: int(lengths[rows].max()) for name, lengths in self.lengths.items()}
        inputs, labels = self.kept
        taken = {name: take(tensor, index, widths.get(name)) for name, tensor in inputs.items()}
        return taken, take(labels, index, widths.get("labels"))

    def _collate(self, rows: np.ndarray) -> tuple[Inputs, torch.Tensor]:
        encoded = self.split.take(rows)
        arrays = self.preprocessing.collate(encoded)
        inputs = {name: to_device(array, self.device) for name, array in arrays.items()}
        if self.classes is not None:
            return inputs, self.classes[to_device(rows, self.device)]
        targets = self.preprocessing.collate_labels(encoded)
        assert targets is not None, "rows without a class have a target"
        return inputs, to_device(targets, self.device)

    def _size_bytes(self) -> int:
        """Bytes of the whole split's model inputs, judged by its first rows."""
        import numpy as np

        rows = np.arange(min(PROBE_ROWS, len(self.split)))
        arrays = self.preprocessing.collate(self.split.take(rows))
        return sum(array.nbytes for array in arrays.values()) * len(self.split) // max(1, len(rows))


def to_device(array: np.ndarray, device: str) -> torch.Tensor:
    """The array as a tensor there. A GPU copies when it has done what it was given before; nobody waits for that."""
    import torch

    return torch.from_numpy(array).to(device, non_blocking=True)


def sequence_lengths(inputs: Inputs, labels: torch.Tensor) -> dict[str, np.ndarray]:
    """Of each padded tensor, the real tokens of every row; labels by the name `labels`."""
    found: dict[str, np.ndarray] = {}
    if "attention_mask" in inputs:
        lengths = inputs["attention_mask"].sum(dim=1).cpu().numpy()
        found |= {"input_ids": lengths, "attention_mask": lengths}
    if labels.ndim == 2:
        lengths = (labels != IGNORED).sum(dim=1).cpu().numpy()
        found |= {"decoder_input_ids": lengths, "labels": lengths}
    return found


def take(tensor: torch.Tensor, index: torch.Tensor, width: int | None) -> torch.Tensor:
    rows = tensor.index_select(0, index)
    return rows if width is None else rows[:, :width]


class TokenFeed:
    """Windows of `seq_len` tokens that do not overlap, and of each the tokens that follow.

    In training the windows of each epoch begin at another offset, so that no token is always the first of its window.

    Args:
        tokens: The whole split, memory-mapped.
        seq_len: Tokens a window.
        shifted: Whether windows move from epoch to epoch.
    """

    def __init__(self, tokens: np.ndarray, seq_len: int, device: str, shifted: bool) -> None:
        import numpy as np

        self.tokens, self.seq_len, self.device = tokens, seq_len, device
        self.label_tokens = seq_len
        self.span = np.arange(seq_len + 1)
        whole = max(0, len(tokens) - 1) // seq_len
        self.windows = max(1, whole - 1) if shifted and whole else whole
        self.spare = len(tokens) - 1 - self.windows * seq_len if shifted else 0
        self.offset = 0

    def __len__(self) -> int:
        return self.windows

    def true_labels(self) -> np.ndarray:
        """None: the labels of a window are its own tokens."""
        import numpy as np

        return np.empty(0, np.int64)

    def start_epoch(self, seed: int, epoch: int) -> None:
        """Draws the offset of an epoch's windows: a function of (seed, epoch) alone."""
        import numpy as np

        if self.spare:
            key = np.array([seed % 2**64, epoch + 2**63], dtype=np.uint64)
            self.offset = int(np.random.Generator(np.random.Philox(key=key)).integers(self.spare + 1))

    def batch(self, rows: np.ndarray) -> tuple[Inputs, torch.Tensor]:
        """Token ids and the next tokens, int64, both of shape (B, T), of the windows numbered `rows`."""
        starts = self.offset + rows * self.seq_len
        window = to_device(self.tokens[starts[:, None] + self.span].astype("int64"), self.device)
        return {"input_ids": window[:, :-1]}, window[:, 1:]
