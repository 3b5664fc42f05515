"""Small networks for images. Shapes: B batch, C channels, H height, W width."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

import torch
from torch import nn

from components.models.config import CnnConfig, MlpConfig


class Mlp(nn.Module):
    """Fully connected layers over the pixels."""

    def __init__(self, config: MlpConfig, inputs: Mapping[str, int], num_classes: int) -> None:
        super().__init__()
        widths = (inputs["channels"] * inputs["image_size"] ** 2, *config.hidden_sizes)
        self.hidden = nn.Sequential(*[mlp_layer(a, b, config.dropout) for a, b in pairwise(widths)])
        self.classifier = nn.Linear(widths[-1], num_classes)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Logits (B, classes) of pixels (B, C, H, W)."""
        return self.classifier(self.hidden(pixel_values.flatten(1)))


def mlp_layer(width_in: int, width_out: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width_in, width_out), nn.ReLU(), nn.Dropout(dropout))


class Cnn(nn.Module):
    """Blocks of convolution, normalisation and pooling, then the mean over the image."""

    def __init__(self, config: CnnConfig, inputs: Mapping[str, int], num_classes: int) -> None:
        super().__init__()
        channels = (inputs["channels"], *config.channels)
        self.blocks = nn.Sequential(*[cnn_block(a, b, config.kernel_size) for a, b in pairwise(channels)])
        self.dropout = nn.Dropout(config.dropout)
        self.classifier = nn.Linear(channels[-1], num_classes)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Logits (B, classes) of pixels (B, C, H, W)."""
        features = self.blocks(pixel_values).mean(dim=(2, 3))
        return self.classifier(self.dropout(features))


def cnn_block(channels_in: int, channels_out: int, kernel_size: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, kernel_size, padding="same", bias=False),
        nn.BatchNorm2d(channels_out),
        nn.ReLU(),
        nn.MaxPool2d(2),
    )
