"""Low-rank adapters by `peft`, inside a network of ours; what is kept of a training is a plain network again.

Source: Hu et al. 2021, https://arxiv.org/abs/2106.09685
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from components.errors import SpecError
from components.models.config import GptConfig, LoraConfig, ModelConfig

if TYPE_CHECKING:
    import torch
    from torch import nn

ADAPTER = "default"


def lora_of(config: ModelConfig) -> LoraConfig | None:
    """The adapters that a model asks for."""
    return getattr(config, "lora", None)


def check_lora(config: ModelConfig, zero_stage: int) -> SpecError | None:
    """Why the adapters cannot be trained so, or None."""
    if lora_of(config) is None or zero_stage < 3:
        return None
    return SpecError(
        "model.lora merges adapters into whole weights, which train.zero.stage 3 shards; set it to 2 or less: only the "
        "adapters have gradients and optimizer state.",
        field="model.lora",
    )


def add_adapters(module: nn.Module, config: ModelConfig) -> None:
    """Freezes the Transformer inside `module` and puts adapters beside its layers; a classifier on top stays trained.

    Raises:
        SpecError: If no layer has one of the names that are asked for.
    """
    from peft import LoraConfig as PeftConfig
    from peft import inject_adapter_in_model

    from components.models.build import inner_network

    lora = lora_of(config)
    assert lora is not None, "the caller checks"
    network: Any = inner_network(module)
    settings = PeftConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules="all-linear" if lora.target_modules is None else list(lora.target_modules),
        fan_in_fan_out=isinstance(config, GptConfig),  # GPT-2 keeps its matrices transposed
    )
    try:
        inject_adapter_in_model(settings, network)
    except ValueError as error:
        raise unknown_layers(network, lora) from error
    for name, value in network.named_parameters():
        value.requires_grad_("lora_" in name)


def unknown_layers(network: nn.Module, lora: LoraConfig) -> SpecError:
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    linear = {name.rpartition(".")[2] for name, part in network.named_modules() if isinstance(part, nn.Linear | Conv1D)}
    return SpecError(
        f"model.lora.target_modules names {', '.join(lora.target_modules or ())}, but the network's linear layers are "
        f"{', '.join(sorted(linear))}; name some of these.",
        field="model.lora.target_modules",
    )


def merge_adapters(module: nn.Module, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The weights of a network without adapters that answers alike; those of the module stay as they are.

    Args:
        weights: What `named_weights` gives of `module`.
    """
    from peft.tuners.lora import LoraLayer

    layers = {name: layer for name, layer in module.named_modules() if isinstance(layer, LoraLayer)}
    merged = {}
    for name, tensor in weights.items():
        if ".lora_" in name:
            continue
        place, found, last = name.rpartition(".base_layer.")
        if found and last == "weight":
            tensor = tensor + layers[place].get_delta_weight(ADAPTER).detach()
        merged[f"{place}.{last}" if found else name] = tensor
    return merged
