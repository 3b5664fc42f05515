"""What a training run is told: plain values that travel to any worker, and the small seam to whoever runs it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from components.models.config import ModelConfig
from components.train.config import TrainConfig


@dataclass(frozen=True)
class TrainJob:
    """One training run, on one worker or many.

    Attributes:
        task: Name of the task.
        model: The architecture and its parameters.
        train: How it is trained. `train.workers` is the world size.
        seed: Governs weights, order, dropout and augmentation.
        dataset: Local folder of the verified Dataset artifact.
        work_folder: Checkpoints lie below it; a restarted job with the same folder continues from the newest valid one.
        key_file: File with the key that authenticates this run's checkpoints (made if absent, mode 0600).
        accept_changes: Whether a checkpoint that was written with other data, seed or settings is continued.
    """

    task: str
    model: ModelConfig
    train: TrainConfig
    seed: int
    dataset: Path
    work_folder: Path
    key_file: Path
    accept_changes: bool = False


class Worker(Protocol):
    """Who the loop is among the workers, and where its reports go.

    It may also have `warn(text)`, and `speed(epoch, metrics)`, told by rank 0 after each report.
    """

    @property
    def rank(self) -> int: ...
    @property
    def world_size(self) -> int: ...
    @property
    def local_rank(self) -> int: ...

    def progress(self, step: int, total: int, metrics: Mapping[str, float]) -> None:
        """Told about once a second by rank 0: loss, samples_per_s or tokens_per_s, mfu, data_wait, eta_s."""

    def report(self, epoch: int, metrics: Mapping[str, float]) -> None:
        """Told by every rank after each epoch (counted from 1) with the validation metrics. A sweep stops a trial by
        raising from here; if the epoch leaves a checkpoint, it is on the disk already. After a restart the checkpoint's
        epoch is told again: a kill may have come between checkpoint and report."""


@dataclass(frozen=True)
class TrainResult:
    """What rank 0 returns.

    Attributes:
        best_epoch: Epoch best on validation by the task's deciding metric.
        metrics: Validation metrics of that epoch.
        history: One dict an epoch: epoch, train_loss, learning_rate and the validation metrics.
        weights: safetensors file with that epoch's weights (below the work folder).
        facts: precision chosen, parameters, steps, seconds, samples_per_s, mfu, data_wait, resumed_from_step, ...
    """

    best_epoch: int
    metrics: Mapping[str, float]
    history: list[dict[str, float]]
    weights: Path
    facts: Mapping[str, Any]


def warn(worker: Worker, text: str) -> None:
    """Tells the user through the worker, if it has a way to; else the log."""
    tell: Callable[[str], None] = getattr(worker, "warn", logging.getLogger(__name__).warning)
    tell(text)
