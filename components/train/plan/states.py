"""Bytes of weights, gradients and optimizer state per worker, under each ZeRO stage and offload.

The engines here train under torch autocast: weights, gradients and moments are fp32, bf16 is what the multiplications
see. The ZeRO paper's mixed precision keeps weights and gradients in 2 bytes and an fp32 copy of the weights beside the
moments. Both add up to 16 bytes a parameter with Adam; where DeepSpeed shards fp32 weights it is 20, as it copies them.

Source: Rajbhandari et al. 2019, section 3 and figure 1, https://arxiv.org/abs/1910.02054
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from components.train.config import ZeroConfig

Offload = Literal["none", "cpu", "nvme"]
Weights = Literal["fp32", "bf16"]

MOMENT_BYTES = {"sgd": 0, "momentum": 4, "adagrad": 4, "adam": 8, "adamw": 8, "muon": 8}
"""Optimizer state in bytes a parameter, fp32, without a copy of the weights."""
FP32_BYTES = 4


@dataclass(frozen=True)
class Sharding:
    """Who holds what.

    Attributes:
        stage: ZeRO stage; 0 shards nothing.
        workers: Workers that share.
        offload_optimizer: Where optimizer state and the weights it updates lie (stages 1 to 3).
        offload_parameters: Where the shards of the weights lie (stage 3).
    """

    stage: int
    workers: int
    offload_optimizer: Offload = "none"
    offload_parameters: Offload = "none"

    @classmethod
    def of(cls, zero: ZeroConfig, workers: int) -> Sharding:
        """What these settings come to: stages 1 and 2 share nothing with one worker, which plain torch trains."""
        alone = workers == 1 and zero.stage < 3 and zero.offload_optimizer == "none"
        return cls(0 if alone else zero.stage, workers, zero.offload_optimizer, zero.offload_parameters)

    @property
    def deepspeed(self) -> bool:
        """Whether DeepSpeed trains, and not plain torch (as `engine.choose_engine` decides)."""
        return self.workers > 1 or self.stage > 0


@dataclass(frozen=True)
class StateBytes:
    """Bytes a worker holds all the time, by what they are and where they lie.

    Attributes:
        weights: On the device.
        gradients: On the device, once all are computed.
        optimizer: On the device: moments, and the copy of the weights that the optimizer updates if there is one.
        host: In the machine's memory, moved there by offload.
        nvme: On its disk.
    """

    weights: int
    gradients: int
    optimizer: int
    host: int = 0
    nvme: int = 0

    @property
    def device(self) -> int:
        return self.weights + self.gradients + self.optimizer


def state_bytes(
    parameters: int, optimizer: str, sharding: Sharding, weights: Weights = "fp32", whole: int = 0, frozen: int = 0
) -> StateBytes:
    """What one worker holds.

    Args:
        parameters: Of the network.
        optimizer: Its name in the spec.
        sharding: Who holds what.
        weights: Type that weights and gradients are kept in.
        whole: Of the parameters, those that stage 3 leaves whole on every worker.
        frozen: Of the parameters, those that are not trained.
    """
    kept = FP32_BYTES if weights == "fp32" else 2
    stage, workers = sharding.stage, sharding.workers
    weight_bytes, trained = parameters * kept, parameters - frozen
    gradient_bytes = _share(trained * kept, workers if stage >= 2 else 1)
    if stage == 3:
        weight_bytes = _share(weight_bytes, workers) + (whole * kept if workers > 1 else 0)
    state = _share(trained * (MOMENT_BYTES[optimizer] + copy_bytes(sharding, weights)), workers if stage else 1)
    return _place(StateBytes(weight_bytes, gradient_bytes, state), sharding, _share(trained * FP32_BYTES, workers))


def copy_bytes(sharding: Sharding, weights: Weights) -> int:
    """Bytes a parameter of the weights' fp32 copy that the optimizer updates.

    DeepSpeed's ZeRO copies its share of the weights even where these are fp32 already; plain training and stage 0
    update fp32 weights in place.
    """
    return FP32_BYTES if weights == "bf16" or sharding.stage else 0


def _place(states: StateBytes, sharding: Sharding, gradient_share: int) -> StateBytes:
    """Moves offloaded bytes off the device; an offloaded optimizer takes its share of the gradients along (fp32)."""
    device = {"weights": states.weights, "gradients": states.gradients, "optimizer": states.optimizer}
    away = {"cpu": 0, "nvme": 0, "none": 0}
    if sharding.offload_optimizer != "none":
        away[sharding.offload_optimizer] += device.pop("optimizer")
        away["cpu"] += gradient_share
        if sharding.offload_optimizer == "nvme":
            away["nvme"] += gradient_share  # on the disk until its sub-group is updated
        if sharding.stage >= 2:
            device.pop("gradients")
    if sharding.offload_parameters != "none":
        away[sharding.offload_parameters] += device.pop("weights")
    left = {name: device.get(name, 0) for name in ("weights", "gradients", "optimizer")}
    return StateBytes(**left, host=away["cpu"], nvme=away["nvme"])


def _share(size_bytes: int, parts: int) -> int:
    return -(-size_bytes // parts)
