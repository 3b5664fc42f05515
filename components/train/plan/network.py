"""What a network is made of: parameters by module, counted on the meta device, so that no weight is ever allocated."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from components.models.build import build_model, inner_network
from components.models.config import ModelConfig, TransformerConfig
from components.models.lora import add_adapters, lora_of
from components.tasks import get_task
from components.train.optimizer import outer_weights

if TYPE_CHECKING:
    from torch import nn

SMALL_TENSOR_ELEMENTS = 100_000
"""ZeRO-3 leaves tensors below this whole on every worker (DeepSpeed's `stage3_param_persistence_threshold`)."""


@dataclass(frozen=True)
class Workload:
    """What is trained, as far as sizes go.

    Attributes:
        task: Its name.
        model: The `model` section of the spec.
        inputs: What `Preprocessing.model_inputs` would give.
        num_classes: Width of the logits; that of a network which writes texts is the vocabulary.
    """

    task: str
    model: ModelConfig
    inputs: Mapping[str, int]
    num_classes: int

    @property
    def tokens(self) -> int:
        """Positions a sample: its tokens (source and target), a ViT's patches and class token, else 1."""
        if "max_length" in self.inputs:
            return self.inputs["max_length"] + self.inputs.get("max_target_length", 0)
        patch = getattr(self.model, "patch_size", None)
        return 1 if patch is None else (self.inputs["image_size"] // patch) ** 2 + 1

    @property
    def label_tokens(self) -> int:
        """Labels a sample, each with logits over the whole vocabulary: those of a window or a target; 1 for a class."""
        if self.is_decoder:
            return self.tokens
        return self.inputs.get("max_target_length", 1)

    @property
    def layers(self) -> int | None:
        """Equal blocks one after another; None for a network that is not built of them."""
        return getattr(self.model, "num_hidden_layers", None)

    @property
    def transformer(self) -> TransformerConfig | None:
        """The model, if it is built of attention blocks."""
        return self.model if isinstance(self.model, TransformerConfig) else None

    @property
    def is_decoder(self) -> bool:
        """Whether a sample is a window of tokens, each of which has logits and a label."""
        return get_task(self.task).packed

    def with_layers(self, layers: int) -> Workload:
        return replace(self, model=self.model.model_copy(update={"num_hidden_layers": layers}))


@dataclass(frozen=True)
class ModuleSize:
    """Parameters of a module, or of all its copies: `decoder.model.layers.*.mlp`, 80 copies."""

    name: str
    copies: int
    parameters: int


@dataclass(frozen=True)
class NetworkSizes:
    """Parameters of a network.

    Attributes:
        modules: In the order of the network.
        parameters: All of them; tied weights count once.
        looked_up: Those of embedding tables that are only looked up: they cost no multiplication.
        largest_block: Of the largest block (one layer, or one module outside the layers), gathered at once by ZeRO-3.
        small: In tensors that ZeRO-3 does not shard.
        from_transformers: Whether the network is one of `transformers`, which must then be loaded.
        frozen: Those that have neither gradient nor optimizer state.
        largest_tensor: Those of the largest tensor.
        most_tensors: Number of tensors of the module that has most.
        hidden: Those of the trained matrices between embeddings and output layer, which Muon updates.
        hidden_squares: Elements of these matrices' products with themselves, on the shorter side.
    """

    modules: tuple[ModuleSize, ...]
    parameters: int
    looked_up: int
    largest_block: int
    small: int
    from_transformers: bool = False
    frozen: int = 0
    largest_tensor: int = 0
    most_tensors: int = 1
    hidden: int = 0
    hidden_squares: int = 0

    @property
    def trained(self) -> int:
        return self.parameters - self.frozen


def count_parameters(workload: Workload) -> NetworkSizes:
    """Counts a network's parameters without making it: 70 billion take seconds and no memory."""
    import torch

    with torch.device("meta"):
        module = build_empty(workload)
    sizes = {name: value.numel() for name, value in module.named_parameters()}
    outer = outer_weights(module)
    hidden = [each for each in module.parameters() if each.requires_grad and each.dim() == 2 and id(each) not in outer]
    return NetworkSizes(
        modules=group_modules(sizes),
        parameters=sum(sizes.values()),
        looked_up=looked_up_parameters(module),
        largest_block=largest_block(sizes),
        small=sum(size for size in sizes.values() if size < SMALL_TENSOR_ELEMENTS),
        from_transformers=inner_network(module) is not None,
        frozen=sum(value.numel() for value in module.parameters() if not value.requires_grad),
        largest_tensor=max(sizes.values()),
        most_tensors=max(Counter(name.rpartition(".")[0] for name in sizes).values()),
        hidden=sum(value.numel() for value in hidden),
        hidden_squares=sum(min(value.shape) ** 2 for value in hidden),
    )


def build_empty(workload: Workload) -> nn.Module:
    """The network with weights that nobody filled; of a pretrained one the shape is read, not the weights."""
    from transformers.initialization import no_init_weights

    with no_init_weights():
        module = build_model(workload.model, workload.inputs, workload.num_classes, pretrained_shape(workload.model))
    if (network := inner_network(module)) is not None:
        network.tie_weights()  # a part of the initialisation that was left out
    if lora_of(workload.model) is not None:
        add_adapters(module, workload.model)
    return module


def pretrained_shape(config: ModelConfig) -> dict[str, Any] | None:
    """The `transformers` config of the network that `model.pretrained` names; None without one."""
    if config.pretrained is None:
        return None
    from transformers import AutoConfig

    from components.models.pretrained import pretrained_error

    try:
        return AutoConfig.from_pretrained(config.pretrained, trust_remote_code=False).to_dict()
    except (OSError, ValueError) as error:
        raise pretrained_error(config.pretrained) from error


def group_modules(sizes: Mapping[str, int]) -> tuple[ModuleSize, ...]:
    """Parameters by module, numbered copies of a block together.

    Args:
        sizes: Elements of each parameter by its dotted name.
    """
    grouped: dict[str, int] = {}
    copies: dict[str, set[str]] = {}
    for name, size in sizes.items():
        block, group = split_name(name)
        grouped[group] = grouped.get(group, 0) + size
        copies.setdefault(group, set()).add(block)
    return tuple(ModuleSize(group, len(copies[group]), size) for group, size in grouped.items())


def split_name(parameter: str) -> tuple[str, str]:
    """The numbered block that a parameter is in and the name of its group: `h.3`, `h.*.attn` of `h.3.attn.bias`."""
    parts = parameter.split(".")[:-1] or [parameter]
    number = next((index for index, part in enumerate(parts) if part.isdigit()), None)
    if number is None:
        return ".".join(parts), ".".join(parts)
    return ".".join(parts[: number + 1]), ".".join([*parts[:number], "*", *parts[number + 1 : number + 2]])


def largest_block(sizes: Mapping[str, int]) -> int:
    blocks: dict[str, int] = {}
    for name, size in sizes.items():
        block, _ = split_name(name)
        blocks[block] = blocks.get(block, 0) + size
    return max(blocks.values())


def looked_up_parameters(module: nn.Module) -> int:
    return sum(table.numel() for table in looked_up_tables(module))


def looked_up_tables(module: nn.Module) -> list[nn.Parameter]:
    """Weights of embeddings that no linear layer shares: nothing is multiplied with them."""
    from torch import nn

    parts = list(module.modules())
    multiplied = {id(part.weight) for part in parts if isinstance(part, nn.Linear)}
    tables = [part.weight for part in parts if isinstance(part, nn.Embedding)]
    return [table for table in tables if id(table) not in multiplied]
