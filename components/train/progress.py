"""Where a training stands."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class Progress:
    """Where a training stands; kept in every checkpoint.

    Attributes:
        step: Optimizer steps that were taken.
        epoch: Finished rounds: epochs, unless `train.validate_every_steps` says otherwise.
        best_epoch: 0 until the first validation.
        best_metrics: Validation metrics of that epoch.
        improved_epoch: Last one in which the deciding metric improved; `early_stop` counts from it.
        history: One dict a round.
        precision: What `choose_precision` found, once and for all.
        skipped: Steps whose gradient was not finite; they are left out.
        rollbacks: How often training went back to a checkpoint because of them.
        overflowed: Steps that fp16 had scaled too far; they changed nothing and cost nothing but themselves.
        loss_scale: Of fp16.
        spikes: Steps whose loss was far above those before.
        accepted: What was changed between two parts of the training, and accepted.
    """

    step: int = 0
    epoch: int = 0
    best_epoch: int = 0
    improved_epoch: int = 0
    best_metrics: dict[str, float] = field(default_factory=dict)
    history: list[dict[str, float]] = field(default_factory=list)
    precision: dict[str, Any] = field(default_factory=dict)
    skipped: list[int] = field(default_factory=list)
    rollbacks: int = 0
    overflowed: list[int] = field(default_factory=list)
    loss_scale: dict[str, Any] | None = None
    spikes: list[int] = field(default_factory=list)
    accepted: list[str] = field(default_factory=list)
