"""From the `model` section of the spec to a network.

    module = build_model(ViTConfig(architecture="vit", patch_size=2), preprocessing.model_inputs(), num_classes=10)
    logits = module(**model_inputs)      # (B, classes)

Every network takes the model inputs of its modality by name and gives logits, a decoder one row a token. None depends
on how far a batch was padded, so a sample gets the same answer alone and in company.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter

from components.errors import SpecError
from components.models.config import (
    BertConfig,
    CnnConfig,
    GptConfig,
    GruConfig,
    LlamaConfig,
    LstmConfig,
    MlpConfig,
    ModelConfig,
    ResNetConfig,
    T5Config,
    TextCnnConfig,
    ViTConfig,
)

if TYPE_CHECKING:
    from torch import nn

IMAGE_INPUTS = ("image_size", "channels")
TEXT_INPUTS = ("vocab_size", "max_length", "pad_token_id")
DECODER_INPUTS = ("vocab_size", "max_length")
PAIR_INPUTS = (*TEXT_INPUTS, "max_target_length", "eos_token_id")


def build_model(
    config: ModelConfig, inputs: Mapping[str, int], num_classes: int, network: Mapping[str, Any] | None = None
) -> nn.Module:
    """Builds the network `config` names, with weights drawn from torch's global generator.

    Args:
        config: The architecture and its parameters.
        inputs: What `Preprocessing.model_inputs` gave.
        num_classes: Width of the logits; that of a network which writes texts is the vocabulary.
        network: A full `transformers` config that wins over `config` (kept with models that began as pretrained ones).

    Returns:
        A module whose `forward(**model_inputs)` gives logits, shape (B, classes).

    Raises:
        SpecError: If the architecture does not fit the inputs, or its pretrained weights cannot be used.
    """
    check_inputs(config, inputs)
    if isinstance(config, GptConfig | LlamaConfig):
        from components.models.decoder import Decoder

        return Decoder(config, inputs, network)
    if isinstance(config, T5Config):
        from components.models.encoder_decoder import EncoderDecoder

        return EncoderDecoder(config, inputs, network)
    if isinstance(config, ViTConfig | ResNetConfig | BertConfig):
        return _from_transformers(config, inputs, num_classes, network)
    if config.pretrained is not None:
        raise SpecError(
            f"model.pretrained is {config.pretrained!r}, but {config.architecture} has no pretrained form; use vit, "
            "resnet or bert, or leave it out.",
            field="model.pretrained",
        )
    if isinstance(config, TextCnnConfig | LstmConfig | GruConfig):
        return _text_network(config, inputs, num_classes)
    return _image_network(config, inputs, num_classes)


def parse_model_config(values: Mapping[str, Any]) -> ModelConfig:
    """The typed `model` section of a plain dict."""
    adapter: TypeAdapter[ModelConfig] = TypeAdapter(ModelConfig)
    return adapter.validate_python(dict(values))


def check_inputs(config: ModelConfig, inputs: Mapping[str, int]) -> None:
    """Raises SpecError if the network cannot take such inputs (a text network for images)."""
    wanted, kind = wanted_inputs(config)
    if any(name not in inputs for name in wanted):
        raise SpecError(
            f"model.architecture is {config.architecture!r}, which takes {kind}, but the data has {', '.join(inputs)}.",
            field="model.architecture",
        )
    if isinstance(config, ViTConfig) and inputs["image_size"] % config.patch_size:
        raise SpecError(
            f"model.patch_size is {config.patch_size}, which does not divide the image size {inputs['image_size']}.",
            field="model.patch_size",
        )
    if isinstance(config, CnnConfig) and inputs["image_size"] >> len(config.channels) < 1:
        raise SpecError(
            f"model.channels has {len(config.channels)} blocks, each of which halves the image, but the image has only "
            f"{inputs['image_size']} pixels a side; use fewer.",
            field="model.channels",
        )


def wanted_inputs(config: ModelConfig) -> tuple[tuple[str, ...], str]:
    """The sizes that a network must be told, and what it takes, in words."""
    if isinstance(config, T5Config):
        return PAIR_INPUTS, "pairs of texts"
    if isinstance(config, GptConfig | LlamaConfig):
        return DECODER_INPUTS, "texts"
    if isinstance(config, BertConfig | TextCnnConfig | LstmConfig | GruConfig):
        return TEXT_INPUTS, "texts"
    return IMAGE_INPUTS, "images"


def inner_network(module: nn.Module) -> Any:
    """The network from `transformers` inside one of ours, or None."""
    names = ("encoder", "decoder", "encoder_decoder")
    return next((getattr(module, name) for name in names if hasattr(module, name)), None)


def _from_transformers(
    config: ViTConfig | ResNetConfig | BertConfig,
    inputs: Mapping[str, int],
    num_classes: int,
    network: Mapping[str, Any] | None,
) -> nn.Module:
    from components.models import transformer

    if isinstance(config, ViTConfig):
        return transformer.ViTClassifier(config, inputs, num_classes, network)
    if isinstance(config, ResNetConfig):
        return transformer.ResNetClassifier(config, inputs, num_classes, network)
    return transformer.BertClassifier(config, inputs, num_classes, network)


def _text_network(
    config: TextCnnConfig | LstmConfig | GruConfig, inputs: Mapping[str, int], num_classes: int
) -> nn.Module:
    from components.models import text

    if isinstance(config, TextCnnConfig):
        return text.TextCnn(config, inputs, num_classes)
    return text.Recurrent(config, inputs, num_classes)


def _image_network(config: MlpConfig | CnnConfig, inputs: Mapping[str, int], num_classes: int) -> nn.Module:
    from components.models import image

    if isinstance(config, MlpConfig):
        return image.Mlp(config, inputs, num_classes)
    return image.Cnn(config, inputs, num_classes)
