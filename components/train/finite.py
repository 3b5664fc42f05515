"""Weights that are infinite or not a number are never kept: neither in a checkpoint nor as the best ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

from components.errors import StageError

if TYPE_CHECKING:
    from components.train.session import Session


def check_weights(session: Session) -> None:
    """Before the weights are written; every rank calls it and hears the same. It reads each number once.

    Raises:
        StageError: If a weight, or a running statistic, of some worker is not finite.
    """
    import torch

    module = session.engine.module
    # Under ZeRO-3 a worker looks at its own shards.
    tensors = [getattr(value, "ds_tensor", value) for value in (*module.parameters(), *module.buffers())]
    # The extremes, which a NaN becomes too: `isfinite` would make copies of each tensor.
    extremes = [torch.stack(value.aminmax()) for value in tensors if value.is_floating_point() and value.numel()]
    own = torch.stack([each.isfinite().all().to(session.group.device) for each in extremes]).all()
    if bool(session.group.gather(own.to(torch.uint8)).all()):
        return
    raise StageError(
        f"Training diverged: the weights are not finite after step {session.progress.step}, and are not kept; lower "
        f"train.learning_rate ({session.job.train.learning_rate:g}) or train.gradient_clipping.",
        field="train.learning_rate",
    )
