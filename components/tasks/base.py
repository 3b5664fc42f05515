"""What a task is: the only plug-in point. A new task is one file and gets every stage without another line.

A task names its columns, fits a `Preprocessing` on the training rows, and says how outputs become a loss, metrics and
answers. The preprocessing is saved with the model and applied again when serving: one code path, no skew.

    raw row  --encode-->  stored row (compact: uint8 pixels, token ids)  --collate-->  model inputs (float32, padded)
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from components.tasks.config import FeatureConfig

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    import torch

RawRows = Mapping[str, Sequence[Any]]
"""Columns of raw values by role: {"text": [...]} or {"image": [encoded bytes, ...]}."""


class Preprocessing(ABC):
    """The fitted way from a raw row to what the network takes. Plain files only; equal data gives equal bytes."""

    classes: tuple[str, ...]

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Writes `preprocessing.json` and whatever else is needed (a tokenizer's JSON) into `folder`."""

    @abstractmethod
    def encode(self, rows: RawRows) -> dict[str, list[Any]]:
        """Compact values to store, one a row: {"pixels": [uint8 bytes of H*W*C]} or {"input_ids": [list of int]}."""

    @abstractmethod
    def collate(self, encoded: Mapping[str, Sequence[Any]]) -> dict[str, np.ndarray]:
        """Model inputs of a batch, batch first: `pixel_values` float32 (B, C, H, W), or `input_ids` and
        `attention_mask` int64 (B, T) padded to the longest of the batch."""

    @abstractmethod
    def model_inputs(self) -> dict[str, int]:
        """What a network must know to be built: image_size, channels | vocab_size, max_length, pad_token_id."""

    @abstractmethod
    def parse_inputs(self, inputs: Sequence[Any]) -> RawRows:
        """Raw rows of the JSON `inputs` of a request. Raises RequestError naming the first bad one."""

    @abstractmethod
    def parse_file(self, content: bytes) -> RawRows:
        """One raw row from an uploaded file. Raises RequestError."""

    @abstractmethod
    def signature(self) -> list[dict[str, Any]]:
        """Open Inference Protocol input tensors that a request holds: name, datatype, shape (-1 is the batch)."""

    @abstractmethod
    def predictions(self, logits: np.ndarray) -> list[dict[str, Any]]:
        """What a client is told for each row of `logits` (B, classes): {"label", "score"}."""


class Task(ABC):
    """A kind of problem."""

    name: ClassVar[str]
    modality: ClassVar[Literal["image", "text"]]
    feature: ClassVar[str]
    """Role of the feature column (`image`, `text`): rows that agree in it are duplicates."""
    architectures: ClassVar[tuple[str, ...]]
    packed: ClassVar[bool] = False
    """Whether it trains on windows of one long sequence of tokens instead of rows with labels."""
    measures: ClassVar[tuple[str, ...]] = ()
    """What `describe` measures."""
    deciding_metric: ClassVar[str]
    mode: ClassVar[Literal["max", "min"]]
    reported: ClassVar[tuple[str, ...]] = ()
    """What else `metrics` gives, by name, besides the deciding metric and `loss`; a sweep may aim at it."""

    @abstractmethod
    def fit(self, rows: Iterable[pa.Table], classes: Sequence[str], config: FeatureConfig) -> Preprocessing:
        """Fits the preprocessing on batches of raw training rows (columns: the feature's role, `label`).

        `rows` may be gone through several times: it is a collection of batches, not a one-way iterator.
        """

    @abstractmethod
    def load(self, folder: Path) -> Preprocessing:
        """Reads back what `Preprocessing.save` wrote."""

    @abstractmethod
    def check_sample(self, value: Any) -> str | None:
        """Why a raw feature value is corrupt (an image that does not decode), or None."""

    def describe(self, value: Any) -> dict[str, int]:
        """The `measures` of a sound raw value, for the data report."""
        return {}

    @abstractmethod
    def loss(self, logits: torch.Tensor, labels: torch.Tensor, label_smoothing: float) -> torch.Tensor:
        """Mean loss over the batch, a scalar. Shapes: logits (B, classes), labels (B,)."""

    def outputs(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """What `metrics` needs of each sample, float32, shape (B, K): the logits, or less where they are many."""
        return logits

    @abstractmethod
    def metrics(self, outputs: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        """Metrics over a whole split, from its `outputs` (rows, K): the deciding one among them, and `loss` in nats a
        sample, or a token."""
