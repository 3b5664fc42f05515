"""Random changes of a batch of training images, each sample by itself, drawn anew every time.

Turn, shift, crop and flip are one affine map, so an image is resampled once, by kornia. Colour and noise act on
normalised pixels, where kornia's own colour operators (made for 0..1) would clip.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from components.train.config import AugmentConfig

if TYPE_CHECKING:
    import torch


def augment_images(config: AugmentConfig, pixels: torch.Tensor) -> torch.Tensor:
    """Changes pixels (B, C, H, W) as `config` says; what is switched off costs nothing."""
    import torch

    if config.rotation or config.shift or config.crop or config.flip:
        pixels = warp_images(pixels, draw_affine(config, pixels))
    if config.color:
        pixels = change_colors(pixels, config.color)
    if config.noise:
        pixels = pixels + config.noise * torch.randn_like(pixels)
    return pixels


def draw_affine(config: AugmentConfig, pixels: torch.Tensor) -> torch.Tensor:
    """One affine map an image in pixel coordinates, shape (B, 2, 3), from source to destination."""
    import torch

    count, _, height, width = pixels.shape
    device = pixels.device
    angle = uniform(count, math.radians(config.rotation), device)
    # A crop to the share `area` is an enlargement by 1 / sqrt(area), at a place that stays within the image.
    scale = 1 / torch.sqrt(1 - config.crop * torch.rand(count, device=device))
    shift_x = uniform(count, 1.0, device) * (config.shift * width + (scale - 1) * width / 2)
    shift_y = uniform(count, 1.0, device) * (config.shift * height + (scale - 1) * height / 2)
    flip = torch.where(torch.rand(count, device=device) < 0.5, -1.0, 1.0) if config.flip else torch.ones_like(scale)
    a, b = scale * angle.cos() * flip, -scale * angle.sin()
    c, d = scale * angle.sin() * flip, scale * angle.cos()
    center_x, center_y = (width - 1) / 2, (height - 1) / 2
    row_x = torch.stack([a, b, center_x - a * center_x - b * center_y + shift_x], dim=1)
    row_y = torch.stack([c, d, center_y - c * center_x - d * center_y + shift_y], dim=1)
    return torch.stack([row_x, row_y], dim=1)


def uniform(count: int, limit: float, device: torch.device) -> torch.Tensor:
    """Values from -limit to limit, shape (count,)."""
    import torch

    return (2 * torch.rand(count, device=device) - 1) * limit


def warp_images(pixels: torch.Tensor, maps: torch.Tensor) -> torch.Tensor:
    """Applies one affine map an image; what comes in from outside repeats the border."""
    from kornia.geometry.transform import warp_affine

    return warp_affine(pixels, maps, dsize=tuple(pixels.shape[-2:]), padding_mode="border")


def change_colors(pixels: torch.Tensor, strength: float) -> torch.Tensor:
    """Contrast by a factor of 1 +- strength about the image's mean, brightness by +- strength standard deviations."""
    count = pixels.shape[0]
    contrast = 1 + uniform(count, strength, pixels.device).view(-1, 1, 1, 1)
    brightness = uniform(count, strength, pixels.device).view(-1, 1, 1, 1)
    mean = pixels.mean(dim=(1, 2, 3), keepdim=True)
    return (pixels - mean) * contrast + mean + brightness
