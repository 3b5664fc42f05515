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

from components.errors import RequestError
from components.tasks.config import FeatureConfig

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    import torch

    from components.models.predictor import Predictor

RawRows = Mapping[str, Sequence[Any]]
"""Columns of raw values by role: {"text": [...]}, {"image": [encoded bytes, ...]} or {"source", "target"}."""


IGNORED = -100
"""A label that no loss counts: padding."""


class Preprocessing(ABC):
    """The fitted way from a raw row to what the network takes. Plain files only; equal data gives equal bytes."""

    classes: tuple[str, ...]

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Writes `preprocessing.json` and whatever else is needed (a tokenizer's JSON) into `folder`."""

    @abstractmethod
    def encode(self, rows: RawRows) -> dict[str, list[Any]]:
        """Compact values to store, one a row: {"pixels": [uint8 bytes of H*W*C]} or {"input_ids": [list of int]}.

        A request's rows have no target."""

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

    def collate_labels(self, encoded: Mapping[str, Sequence[Any]]) -> np.ndarray | None:
        """Labels of a batch where they are encoded as the inputs are: int64, (B, U), IGNORED where there is none."""
        return None

    def count_cut(self, encoded: pa.Table) -> dict[str, int]:
        """How many encoded rows were cut to their greatest length, by role; none is counted unless told here."""
        return {}


class Task(ABC):
    """A kind of problem."""

    name: ClassVar[str]
    modality: ClassVar[Literal["image", "text"]]
    feature: ClassVar[str]
    """Role of the feature column (`image`, `text`): rows that agree in it are duplicates."""
    target: ClassVar[str | None] = None
    """Role of the column with the text that is to be written; None where a label is a class, or there is none."""
    architectures: ClassVar[tuple[str, ...]]
    generative: ClassVar[bool] = False
    """Whether it answers with texts of its own making instead of a class."""
    options: ClassVar[tuple[str, ...]] = ()
    """How a client may have it answered, by the names of `Sampling`."""
    packed: ClassVar[bool] = False
    """Whether it trains on windows of one long sequence of tokens instead of rows with labels."""
    measures: ClassVar[tuple[str, ...]] = ()
    """What `describe` measures."""
    deciding_metric: ClassVar[str]
    mode: ClassVar[Literal["max", "min"]]
    reported: ClassVar[tuple[str, ...]] = ()
    """What else `metrics` gives, by name, besides the deciding metric and `loss`; a sweep may aim at it."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Roles of the raw columns that are encoded: the feature, and the target where there is one."""
        return (self.feature,) if self.target is None else (self.feature, self.target)

    @abstractmethod
    def fit(self, rows: Iterable[pa.Table], classes: Sequence[str], config: FeatureConfig) -> Preprocessing:
        """Fits the preprocessing on batches of raw training rows (columns: `columns`, and `label` where there is one).

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

    @abstractmethod
    def answer(self, predictor: Predictor, rows: RawRows, options: Mapping[str, Any]) -> list[dict[str, Any]]:
        """What a client is told for each raw row: {"label", "score"}, or {"text"}.

        Args:
            options: Some of `self.options`; what is not named is the task's default.

        Raises:
            RequestError: If an option's value is not allowed.
        """

    def outputs(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """What `metrics` needs of each sample, float32, shape (B, K): the logits, or less where they are many."""
        return logits

    @abstractmethod
    def metrics(self, outputs: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        """Metrics over a whole split, from its `outputs` (rows, K): the deciding one among them, and `loss` in nats a
        sample, or a token."""


def check_inputs(inputs: Sequence[Any]) -> None:
    """Refuses what is no list of inputs, or an empty one.

    Raises:
        RequestError: If `inputs` is not a non-empty list.
    """
    if isinstance(inputs, str | bytes) or not hasattr(inputs, "__len__"):
        raise RequestError(f"inputs is a {type(inputs).__name__}; give a list with one entry a sample.", field="inputs")
    if not len(inputs):
        raise RequestError("inputs is empty; give a list with one entry a sample.", field="inputs")
