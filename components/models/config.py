"""The `model` section of the spec: one class an architecture, its parameters by the names `transformers` uses."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from components.config import Config


class ArchitectureConfig(Config):
    """What all architectures share."""

    pretrained: str | None = None
    """A local folder or hub name with safetensors weights to start from; None starts from random weights."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """Probability of dropping an activation (attention and hidden alike)."""


class MlpConfig(ArchitectureConfig):
    """Fully connected layers over the pixels."""

    architecture: Literal["mlp"]
    hidden_sizes: tuple[int, ...] = (128,)
    """Width of each hidden layer."""


class CnnConfig(ArchitectureConfig):
    """Small convolutional network: blocks of convolution, normalisation and pooling."""

    architecture: Literal["cnn"]
    channels: tuple[int, ...] = (32, 64)
    """Channels of each block; each block halves the image."""
    kernel_size: int = Field(3, ge=1)


class ResNetConfig(ArchitectureConfig):
    """ResNet (He et al. 2015) from `transformers`."""

    architecture: Literal["resnet"]
    embedding_size: int = Field(32, ge=1)
    hidden_sizes: tuple[int, ...] = (32, 64)
    depths: tuple[int, ...] = (2, 2)
    layer_type: Literal["basic", "bottleneck"] = "basic"

    @model_validator(mode="after")
    def _rules(self) -> ResNetConfig:
        if len(self.hidden_sizes) != len(self.depths):
            raise ValueError(
                f"hidden_sizes has {len(self.hidden_sizes)} stages, depths {len(self.depths)}; make them equal"
            )
        return self


class LoraConfig(Config):
    """Low-rank adapters (Hu et al. 2021): small matrices are trained beside frozen ones, then merged into them."""

    rank: int = Field(8, ge=1)
    """Width of the adapters."""
    alpha: float = Field(16.0, gt=0)
    """What they add is scaled by alpha / rank."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Of their inputs."""
    target_modules: tuple[str, ...] | None = None
    """Names of the layers that get one (`q_proj`); None is every linear layer but the output layer."""


class TransformerConfig(ArchitectureConfig):
    """What the Transformers share."""

    lora: LoraConfig | None = None
    """None trains all weights; else adapters, and the classifier where there is one. Meant for `pretrained`."""

    hidden_size: int = Field(128, ge=1)
    num_hidden_layers: int = Field(2, ge=1)
    num_attention_heads: int = Field(4, ge=1)
    intermediate_size: int | None = Field(None, ge=1)
    """Width of the feed-forward layer; None is 4 x hidden_size."""

    @model_validator(mode="after")
    def _rules(self) -> TransformerConfig:
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} does not divide by num_attention_heads {self.num_attention_heads}; "
                "make it a multiple"
            )
        return self


class ViTConfig(TransformerConfig):
    """Vision Transformer (Dosovitskiy et al. 2020) from `transformers`."""

    architecture: Literal["vit"]
    patch_size: int = Field(4, ge=1)
    """Pixels a side of a patch; must divide the image size."""


class BertConfig(TransformerConfig):
    """BERT-style encoder (Devlin et al. 2018) from `transformers`."""

    architecture: Literal["bert"]


class GptConfig(TransformerConfig):
    """GPT-2 style decoder (Radford et al. 2019) from `transformers`."""

    architecture: Literal["gpt"]


class LlamaConfig(TransformerConfig):
    """Llama style decoder (Touvron et al. 2023) from `transformers`: rotary positions, RMS norm, gated layers."""

    architecture: Literal["llama"]
    dropout: float = Field(0.0, ge=0, lt=1)
    """Probability of dropping an attention weight; there is no other dropout."""
    num_key_value_heads: int | None = Field(None, ge=1)
    """Heads of keys and values (grouped-query attention); None is num_attention_heads."""
    rope_theta: float = Field(10_000.0, gt=0)
    """Base of the rotary positions."""
    tie_word_embeddings: bool = False
    """Whether the output layer shares the input embedding's weights."""

    @model_validator(mode="after")
    def _heads(self) -> LlamaConfig:
        if self.num_key_value_heads and self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads {self.num_attention_heads} does not divide by num_key_value_heads "
                f"{self.num_key_value_heads}; make it a multiple"
            )
        return self


class T5Config(TransformerConfig):
    """T5 encoder-decoder (Raffel et al. 2019) from `transformers`: relative positions, RMS norm, tied embeddings."""

    architecture: Literal["t5"]
    num_decoder_layers: int | None = Field(None, ge=1)
    """Layers of the decoder; None is num_hidden_layers, as in the encoder."""
    feed_forward_proj: Literal["relu", "gated-gelu"] = "relu"
    """gated-gelu is that of T5 1.1."""
    relative_attention_num_buckets: int = Field(32, ge=2)
    """Distances that the attention tells apart."""
    relative_attention_max_distance: int = Field(128, ge=2)
    """Tokens beyond which all distances are alike."""


class TextCnnConfig(ArchitectureConfig):
    """Convolutions over word vectors (Kim 2014)."""

    architecture: Literal["text-cnn"]
    embedding_size: int = Field(128, ge=1)
    num_filters: int = Field(128, ge=1)
    """Filters of each kernel size."""
    kernel_sizes: tuple[int, ...] = (2, 3, 4)
    word_dropout: float = Field(0.1, ge=0, lt=1)
    """Probability of dropping a whole token while training."""


class RecurrentConfig(ArchitectureConfig):
    """What the recurrent networks share."""

    embedding_size: int = Field(128, ge=1)
    hidden_size: int = Field(128, ge=1)
    num_hidden_layers: int = Field(1, ge=1)
    bidirectional: bool = True


class LstmConfig(RecurrentConfig):
    """LSTM (Hochreiter and Schmidhuber 1997)."""

    architecture: Literal["lstm"]


class GruConfig(RecurrentConfig):
    """GRU (Cho et al. 2014)."""

    architecture: Literal["gru"]


ModelConfig = Annotated[
    MlpConfig
    | CnnConfig
    | ResNetConfig
    | ViTConfig
    | BertConfig
    | TextCnnConfig
    | LstmConfig
    | GruConfig
    | GptConfig
    | LlamaConfig
    | T5Config,
    Field(discriminator="architecture"),
]

ARCHITECTURES = ("mlp", "cnn", "resnet", "vit", "bert", "text-cnn", "lstm", "gru", "gpt", "llama", "t5")
LATER_ARCHITECTURES = ("vgg", "inception")
"""Named by the design, not available in this version."""

__all__ = ["ARCHITECTURES", "LATER_ARCHITECTURES", "ModelConfig"]
