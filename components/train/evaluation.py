"""What the metrics need of every sample of a split, its batches divided over the workers."""

from __future__ import annotations

import math
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


def evaluate(engine: Engine, task: Task, feed: Feed | TokenFeed, group: Group) -> np.ndarray:
    """The task's outputs, float32, shape (rows, K), on every rank: logits, or losses of windows and targets.

    Every rank runs equally many batches of one size (the last rows are repeated to fill up), because under ZeRO-3 a
    forward pass is a collective call.
    """
    import numpy as np
    import torch

    most = BATCH_SIZE if feed.label_tokens == 1 else max(1, BATCH_TOKENS // feed.label_tokens)
    rounds = math.ceil(len(feed) / (most * group.world_size))
    size = math.ceil(len(feed) / (rounds * group.world_size))
    padded = np.resize(np.arange(len(feed)), rounds * group.world_size * size)
    engine.module.eval()
    parts = []
    with torch.no_grad():
        for index in range(rounds):
            start = (index * group.world_size + group.rank) * size
            inputs, labels = feed.batch(padded[start : start + size])
            outputs = task.outputs(engine.forward(inputs), labels)
            parts.append(group.gather(outputs).flatten(0, 1).cpu())
    engine.module.train()
    return torch.cat(parts)[: len(feed)].numpy()
