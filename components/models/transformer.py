"""ViT, ResNet and BERT from `transformers`, each with a linear classifier on top.

Weights come from random numbers or from `pretrained`: a local folder or a hub name, in safetensors only.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from components.errors import SpecError
from components.imports import prepare_transformers
from components.models.build import inner_network
from components.models.config import BertConfig, ResNetConfig, TransformerConfig, ViTConfig
from components.models.pretrained import pretrained_error
from components.models.text import masked_mean

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

prepare_transformers()


class ViTClassifier(nn.Module):
    """Vision Transformer; the class token's last state decides."""

    def __init__(
        self, config: ViTConfig, inputs: Mapping[str, int], num_classes: int, network: Mapping[str, Any] | None
    ) -> None:
        from transformers.models.vit.configuration_vit import ViTConfig as NetworkConfig
        from transformers.models.vit.modeling_vit import ViTModel

        super().__init__()
        scratch = NetworkConfig(
            image_size=inputs["image_size"],
            num_channels=inputs["channels"],
            patch_size=config.patch_size,
            **transformer_values(config),
        )
        self.encoder = make_encoder(ViTModel, scratch, config, network, add_pooling_layer=False)
        check_same(self.encoder.config.image_size, inputs["image_size"], "image size", "data.image.size")
        check_same(self.encoder.config.num_channels, inputs["channels"], "number of channels", "data.image.channels")
        self.classifier = linear_head(self.encoder.config.hidden_size, num_classes)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Logits (B, classes) of pixels (B, C, H, W)."""
        return self.classifier(self.encoder(pixel_values=pixel_values).last_hidden_state[:, 0])


class BertClassifier(nn.Module):
    """BERT-style encoder; the mean over the tokens' last states decides, so no special first token is needed.

    Word vectors of a pretrained model are made anew: the vocabulary is fitted to the data, so the same number is
    another word there.
    """

    def __init__(
        self, config: BertConfig, inputs: Mapping[str, int], num_classes: int, network: Mapping[str, Any] | None
    ) -> None:
        from transformers.models.bert.configuration_bert import BertConfig as NetworkConfig
        from transformers.models.bert.modeling_bert import BertModel

        super().__init__()
        scratch = NetworkConfig(
            vocab_size=inputs["vocab_size"],
            max_position_embeddings=inputs["max_length"],
            pad_token_id=inputs["pad_token_id"],
            **transformer_values(config),
        )
        self.encoder = make_encoder(BertModel, scratch, config, network, add_pooling_layer=False)
        if network is None and config.pretrained is not None:
            self.encoder.resize_token_embeddings(inputs["vocab_size"], mean_resizing=False)
            redraw(self.encoder.get_input_embeddings().weight, self.encoder.config.initializer_range)
        self.dropout = nn.Dropout(config.dropout)
        self.classifier = linear_head(self.encoder.config.hidden_size, num_classes)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Logits (B, classes) of token ids and their mask (B, T)."""
        states_BTH = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        return self.classifier(self.dropout(masked_mean(states_BTH, attention_mask)))


class ResNetClassifier(nn.Module):
    """ResNet; the mean over the image of the last feature maps decides."""

    def __init__(
        self, config: ResNetConfig, inputs: Mapping[str, int], num_classes: int, network: Mapping[str, Any] | None
    ) -> None:
        from transformers.models.resnet.configuration_resnet import ResNetConfig as NetworkConfig
        from transformers.models.resnet.modeling_resnet import ResNetModel

        super().__init__()
        scratch = NetworkConfig(
            num_channels=inputs["channels"],
            embedding_size=config.embedding_size,
            hidden_sizes=list(config.hidden_sizes),
            depths=list(config.depths),
            layer_type=config.layer_type,
        )
        self.encoder = make_encoder(ResNetModel, scratch, config, network)
        check_same(self.encoder.config.num_channels, inputs["channels"], "number of channels", "data.image.channels")
        self.dropout = nn.Dropout(config.dropout)
        self.classifier = linear_head(self.encoder.config.hidden_sizes[-1], num_classes)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Logits (B, classes) of pixels (B, C, H, W)."""
        features = self.encoder(pixel_values=pixel_values).last_hidden_state.mean(dim=(2, 3))
        return self.classifier(self.dropout(features))


def transformer_values(config: TransformerConfig) -> dict[str, Any]:
    """Our field names to those of `transformers`."""
    return {
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "intermediate_size": config.intermediate_size or 4 * config.hidden_size,
        "hidden_dropout_prob": config.dropout,
        "attention_probs_dropout_prob": config.dropout,
    }


def make_encoder(
    model_class: type[PreTrainedModel],
    scratch: PretrainedConfig,
    config: ViTConfig | BertConfig | ResNetConfig,
    network: Mapping[str, Any] | None,
    **options: Any,
) -> PreTrainedModel:
    """The encoder with random weights (shaped by `network` if given, else by `scratch`) or pretrained ones."""
    attention = {} if isinstance(config, ResNetConfig) else {"attn_implementation": "sdpa"}
    if network is None and config.pretrained is not None:
        return load_pretrained(model_class, config.pretrained, **attention, **options)
    shape = scratch if network is None else type(scratch).from_dict(dict(network))
    for name, value in attention.items():
        setattr(shape, f"_{name}", value)
    return make_network(model_class, shape, **options)


def make_network(model_class: Any, shape: PretrainedConfig, **options: Any) -> Any:
    """A network with random weights; sharded from the start inside `sharded.sharding`, with the same weights."""
    from transformers.initialization import no_init_weights
    from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

    if is_deepspeed_zero3_enabled():
        from components.models.sharded import make_sharded

        return make_sharded(model_class, shape, options)
    # Drawn once, in one pass: torch's own weights, drawn layer by layer before, would only be overwritten.
    with no_init_weights():
        network = model_class(shape, **options)
    network.init_weights()
    return network


def load_pretrained(model_class: type[PreTrainedModel], source: str, **options: Any) -> PreTrainedModel:
    """Loads safetensors weights from a folder or the hub; what is on this machine already is taken first."""
    options = {**options, "use_safetensors": True, "trust_remote_code": False}
    try:
        return model_class.from_pretrained(source, local_files_only=True, **options)
    except OSError as local_error:
        if Path(source).exists():
            raise pretrained_error(source) from local_error
    try:
        return model_class.from_pretrained(source, **options)
    except (OSError, ValueError) as error:
        raise pretrained_error(source) from error


def redraw(weight: nn.Parameter, std: float) -> None:
    """Draws a weight anew, sharded or not."""
    from components.models.sharded import gathered

    with torch.no_grad():
        if hasattr(weight, "ds_id"):
            with gathered([weight]):
                nn.init.normal_(weight, std=std)
        else:
            nn.init.normal_(weight, std=std)


def check_same(pretrained: int, data: int, what: str, field: str) -> None:
    if pretrained != data:
        raise SpecError(
            f"The pretrained network has {what} {pretrained}, but the data has {data}; set {field} to {pretrained}.",
            field=field,
        )


def linear_head(width: int, num_classes: int) -> nn.Linear:
    """The classifier, started as `transformers` starts its own: N(0, 0.02) and zero bias."""
    head = nn.Linear(width, num_classes)
    nn.init.normal_(head.weight, std=0.02)
    nn.init.zeros_(head.bias)
    return head


def checkpoint_activations(module: nn.Module) -> None:
    """Makes the Transformer in `module` compute its layers' activations again in the backward pass.

    Raises:
        SpecError: If there is none.
    """
    network = inner_network(module)
    if network is None or not getattr(network, "supports_gradient_checkpointing", False):
        raise SpecError(
            "train.activation_checkpointing is for Transformers, and this network is none; set it to false.",
            field="train.activation_checkpointing",
        )
    network.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})


def network_values(module: nn.Module) -> dict[str, Any] | None:
    """The `transformers` config of a network built here, without what differs between machines; None for others."""
    network = inner_network(module)
    if network is None or not hasattr(network, "config"):
        return None
    values = network.config.to_diff_dict()
    return {name: value for name, value in values.items() if name not in ("transformers_version", "_name_or_path")}
