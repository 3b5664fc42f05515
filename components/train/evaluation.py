"""Logits of a whole split, its batches divided over the workers."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from components.train.engine import Engine
from components.train.feed import Feed
from components.train.group import Group

if TYPE_CHECKING:
    import numpy as np

BATCH_SIZE = 256
"""Largest number of rows at once; no gradient is kept, so it may be larger than in training."""


def evaluate(engine: Engine, feed: Feed, group: Group) -> np.ndarray:
    """Logits, float32, shape (rows, classes), on every rank.

    Every rank runs equally many batches of one size (the last rows are repeated to fill up), because under ZeRO-3 a
    forward pass is a collective call.
    """
    import numpy as np
    import torch

    rounds = math.ceil(len(feed) / (BATCH_SIZE * group.world_size))
    size = math.ceil(len(feed) / (rounds * group.world_size))
    padded = np.resize(np.arange(len(feed)), rounds * group.world_size * size)
    engine.module.eval()
    parts = []
    with torch.no_grad():
        for index in range(rounds):
            start = (index * group.world_size + group.rank) * size
            inputs, _ = feed.batch(padded[start : start + size])
            parts.append(group.gather(engine.forward(inputs)).flatten(0, 1).cpu())
    engine.module.train()
    return torch.cat(parts)[: len(feed)].numpy()
