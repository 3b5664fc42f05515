"""Which rows a worker sees in which step: a function of (seed, epoch) alone, whatever the number of workers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class BatchShape:
    """How a step's rows are divided.

    Attributes:
        rows: Rows of the training split.
        global_batch_size: Rows a step.
        accumulation: Micro batches a worker takes in one step.
        world_size: Workers.
    """

    rows: int
    global_batch_size: int
    accumulation: int
    world_size: int

    @property
    def steps_per_epoch(self) -> int:
        return math.ceil(self.rows / self.global_batch_size)

    def epoch_of(self, step: int) -> int:
        """The pass over the rows that a step belongs to."""
        return step // self.steps_per_epoch

    @property
    def micro_batch_size(self) -> int:
        """Rows a worker takes at once."""
        return self.global_batch_size // (self.accumulation * self.world_size)


def epoch_order(seed: int, epoch: int, shape: BatchShape) -> np.ndarray:
    """Row numbers of an epoch in the order of training, int64, shape (steps_per_epoch * global_batch_size,).

    A Philox generator keyed by (seed, epoch) shuffles them, so any epoch's order is known without the ones before. The
    last batch is filled up from the front: all batches have one size, and no row is left out.
    """
    import numpy as np

    key = np.array([seed % 2**64, epoch], dtype=np.uint64)
    order = np.random.Generator(np.random.Philox(key=key)).permutation(shape.rows)
    return np.resize(order, shape.steps_per_epoch * shape.global_batch_size)


def micro_batch(order: np.ndarray, step: int, part: int, rank: int, shape: BatchShape) -> np.ndarray:
    """Rows of one worker's micro batch: the same rows make up a step at any world size.

    Args:
        order: Of the epoch that the step belongs to.
        step: Counted over the whole training.
        part: Which micro batch of the step.
    """
    size = shape.micro_batch_size
    start = step % shape.steps_per_epoch * shape.global_batch_size + (part * shape.world_size + rank) * size
    return order[start : start + size]


@dataclass(frozen=True)
class Rounds:
    """The steps of a training, in rounds that end with a validation each.

    Attributes:
        total_steps: Of the whole training.
        steps: Of one round; the last one may be shorter.
    """

    total_steps: int
    steps: int

    @property
    def count(self) -> int:
        """Rounds of the whole training."""
        return math.ceil(self.total_steps / self.steps)

    def bounds(self, number: int) -> tuple[int, int]:
        """First step of round `number` (counted from 0), and one past its last."""
        return number * self.steps, min((number + 1) * self.steps, self.total_steps)
