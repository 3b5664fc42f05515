"""How a raw feature becomes numbers: the `image` and `text` parts of the `data` section."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from components.config import Config


class ImageConfig(Config):
    """How an image is brought to a common shape."""

    size: int | None = Field(None, ge=4, le=1024)
    """Height and width in pixels; None takes the median size, at most 64 on a CPU."""
    channels: Literal[1, 3] | None = None
    """1 for grey, 3 for colour; None takes what most images have."""


class TextConfig(Config):
    """How a text becomes tokens."""

    tokenizer: str = "bpe"
    """bpe: a vocabulary fitted on the training split. For tasks that write texts alone: byte, character, or the folder
    or hub name of a pretrained network, whose own is taken."""
    vocab_size: int = Field(8192, ge=16, le=200_000)
    """Size of the BPE vocabulary."""
    max_length: int = Field(64, ge=4, le=8192)
    """Tokens of a text, or of a source; longer ones are cut. A language model's is `train.seq_len`."""
    max_target_length: int | None = Field(None, ge=2, le=8192)
    """Tokens of a target (`text2text-generation`), its end included; None is `max_length`."""
    lowercase: bool = True
    """Whether a classifier's texts lose their case before tokens are made."""


class FeatureConfig(Config):
    """What a task's preprocessing is fitted with."""

    image: ImageConfig = ImageConfig()
    text: TextConfig = TextConfig()
