"""What the metrics need of every sample of a split, its batches divided over the workers."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from components.tasks.base import Task
from components.train.engine import Engine
from components.train.feed import Feed, TokenFeed
from components.train.group import Group

if TYPE_CHECKING:
    import numpy as np

BATCH_SIZE = 256
"""Largest number of rows at once; no gradient is kept, so it may be larger than in training."""
BATCH_TOKENS = 8192
"""The same where a sample has many labels: each of its tokens has logits over the whole vocabulary."""


def largest_batch(label_tokens: int) -> int:
    """Rows at once at most.

    Args:
        label_tokens: Labels of a row; 1 for a class.
    """
    return BATCH_SIZE if label_tokens == 1 else max(1, BATCH_TOKENS // label_tokens)


def divide_rows(rows: int, label_tokens: int, workers: int) -> tuple[int, int]:
    """Number of batches of each worker, and rows of each of them: as even as can be."""
    rounds = math.ceil(rows / (largest_batch(label_tokens) * workers))
    return rounds, math.ceil(rows / (rounds * workers))


def evaluate(
    engine: Engine, task: Task, feed: Feed | TokenFeed, group: Group, between: Callable[[], None] = lambda: None
) -> np.ndarray:
    """The task's outputs, float32, shape (rows, K), on every rank: logits, or losses of windows and targets.

    Every rank runs equally many batches of one size (the last rows are repeated to fill up), because under ZeRO-3 a
    forward pass is a collective call.

    Args:
        between: Called after each batch; it may raise.
    """
    import numpy as np
    import torch

    rounds, size = divide_rows(len(feed), feed.label_tokens, group.world_size)
    padded = np.resize(np.arange(len(feed)), rounds * group.world_size * size)
    engine.module.eval()
    parts = []
    with torch.no_grad():
        for index in range(rounds):
            start = (index * group.world_size + group.rank) * size
            inputs, labels = feed.batch(padded[start : start + size])
            outputs = task.outputs(engine.forward(inputs), labels)
            parts.append(group.gather(outputs).flatten(0, 1).cpu())
            between()
    engine.module.train()
    return torch.cat(parts)[: len(feed)].numpy()
