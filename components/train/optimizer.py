"""The update rule, and the penalties that are part of the loss."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from components.train.config import RegularizeConfig, TrainConfig
from components.train.device import cpu_multiplies_bf16

if TYPE_CHECKING:
    import torch
    from torch import nn


def make_optimizer(config: TrainConfig, module: nn.Module) -> torch.optim.Optimizer:
    """The torch optimizer that `train.optimizer` names, in its fused form.

    Biases and the scales of normalisations are not decayed: they are no weights that could overfit.
    """
    import torch

    options = config.optimizer
    groups = parameter_groups(module, config.regularize.weight_decay if options.name == "adamw" else 0.0)
    common: dict[str, Any] = {"lr": config.learning_rate, "fused": True}
    if options.name == "sgd":
        return torch.optim.SGD(groups, **common)
    if options.name == "momentum":
        return torch.optim.SGD(groups, momentum=options.momentum, **common)
    if options.name == "adagrad":
        # Its fused form is for CPUs alone.
        on_cpu = all(value.device.type == "cpu" for group in groups for value in group["params"])
        return torch.optim.Adagrad(groups, eps=options.eps, lr=config.learning_rate, fused=on_cpu or None)
    if options.name == "muon":
        return make_muon(config, module)
    kind = torch.optim.AdamW if options.name == "adamw" else torch.optim.Adam
    return kind(groups, betas=options.betas, eps=options.eps, **common)


def make_muon(config: TrainConfig, module: nn.Module) -> torch.optim.Optimizer:
    """Muon for the matrices between layers, AdamW for embeddings, the output layer and vectors; one learning rate.

    Its step is scaled to the size of AdamW's (Liu et al. 2025, https://arxiv.org/abs/2502.16982).
    """
    import torch

    from components.train.joined import JoinedOptimizer
    from components.train.muon import Muon

    decay, options = config.regularize.weight_decay, config.optimizer
    outer = outer_weights(module)
    trained = [value for value in module.parameters() if value.requires_grad]
    hidden = [value for value in trained if value.dim() == 2 and id(value) not in outer]
    others = [value for value in trained if value.dim() != 2 or id(value) in outer]
    groups = [
        {"params": [value for value in others if value.dim() > 1], "weight_decay": decay},
        {"params": [value for value in others if value.dim() <= 1], "weight_decay": 0.0},
    ]
    adamw = torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=config.learning_rate,
        betas=options.betas,
        eps=options.eps,
        fused=True,
    )
    if not hidden:
        return adamw
    on_cpu = hidden[0].device.type == "cpu"
    muon = Muon(
        hidden,
        lr=config.learning_rate,
        momentum=options.momentum,
        weight_decay=decay,
        dtype=torch.float32 if on_cpu and not cpu_multiplies_bf16() else torch.bfloat16,
    )
    return JoinedOptimizer(muon, adamw)


def outer_weights(module: nn.Module) -> set[int]:
    """Ids of the embeddings' weights and of the last linear layer's."""
    import torch

    embeddings = {id(part.weight) for part in module.modules() if isinstance(part, torch.nn.Embedding)}
    linear = [part for part in module.modules() if isinstance(part, torch.nn.Linear)]
    return embeddings | ({id(linear[-1].weight)} if linear else set())


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Matrices with `weight_decay`, vectors without; a group that would be empty is left out."""
    trained = [value for value in module.parameters() if value.requires_grad]
    # What ZeRO-3 leaves in a sharded parameter's place has no shape of its own.
    dims = [len(getattr(value, "ds_shape", value.shape)) for value in trained]
    matrices = [value for value, count in zip(trained, dims, strict=True) if count > 1]
    vectors = [value for value, count in zip(trained, dims, strict=True) if count <= 1]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def weight_penalty(config: RegularizeConfig, module: nn.Module) -> torch.Tensor | None:
    """l1 x sum of absolute weights + l2 / 2 x sum of squared weights, or None where both are 0."""
    if not config.l1 and not config.l2:
        return None
    total = None
    for weight in (value for value in module.parameters() if value.requires_grad and value.dim() > 1):
        part = config.l1 * weight.abs().sum() + 0.5 * config.l2 * weight.square().sum()
        total = part if total is None else total + part
    return total
