"""Bytes or arrays to uint8 images: the one decoder of training and of serving.

Only the formats below are tried, and the size in the header is checked before a pixel is decoded, so that neither an
exotic decoder nor a decompression bomb is reached by a file from outside.
"""

from __future__ import annotations

import base64
import binascii
import io
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP")
MAX_PIXELS = 50_000_000
"""Largest width x height that is decoded: 150 MB as RGB."""


class BadImage(ValueError):
    """Bytes or an array that are no image this project takes; the message says why."""


def open_image(content: bytes) -> Image.Image:
    """Reads the header only.

    Raises:
        BadImage: If it is none of the formats, or has more than MAX_PIXELS.
    """
    from PIL import Image

    bombs = (Image.DecompressionBombError, Image.DecompressionBombWarning)
    try:
        image = Image.open(io.BytesIO(content), formats=FORMATS)
    except bombs as error:
        raise BadImage(f"it has more than {MAX_PIXELS} pixels") from error
    except Exception as error:  # Pillow's parsers raise many kinds (OSError, SyntaxError, struct.error) on bad bytes.
        raise BadImage(f"it is not a readable image ({'/'.join(FORMATS)})") from error
    if image.width * image.height > MAX_PIXELS:
        raise BadImage(f"it has {image.width} x {image.height} pixels, more than {MAX_PIXELS}")
    return image


def decode_image(value: bytes | np.ndarray) -> Image.Image:
    """A whole image from encoded bytes, or from a uint8 array (H, W) or (H, W, C).

    Raises:
        BadImage: If it cannot be decoded.
    """
    from PIL import Image, ImageOps

    if not isinstance(value, bytes):
        return Image.fromarray(value[:, :, 0] if value.ndim == 3 and value.shape[2] == 1 else value)
    image = open_image(value)
    try:
        image.load()
        return ImageOps.exif_transpose(image)
    except Exception as error:  # As above: a torn file makes the decoders raise whatever they stumble over.
        raise BadImage(f"it cannot be decoded ({error})") from error


def image_shape(content: bytes) -> tuple[int, int, int]:
    """Height, width and natural channels (1 grey, 3 colour) from the header."""
    image = open_image(content)
    grey = image.mode in ("1", "L", "LA", "I", "F") or image.mode.startswith("I;16")
    return image.height, image.width, 1 if grey else 3


def to_pixels(value: bytes | np.ndarray, size: int, channels: int) -> bytes:
    """The stored form: size * size * channels uint8 in height, width, channel order, resized bilinearly."""
    from PIL import Image

    image = eight_bits(decode_image(value)).convert("L" if channels == 1 else "RGB")
    if image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.BILINEAR)
    return image.tobytes()


def eight_bits(image: Image.Image) -> Image.Image:
    """Scales 16-bit grey down; Pillow's own conversion would clip it to white."""
    import numpy as np
    from PIL import Image

    if image.mode.startswith("I"):
        return Image.fromarray((np.asarray(image).astype(np.int64).clip(0, 65535) >> 8).astype(np.uint8))
    return image


def to_png(pixels: np.ndarray) -> bytes:
    """PNG bytes of a uint8 array (H, W) or (H, W, 3)."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def from_base64(text: str) -> bytes:
    """Bytes of plain base64 or of a `data:` URL.

    Raises:
        BadImage: If it is not base64.
    """
    payload = text.partition(",")[2] if text.startswith("data:") else text
    try:
        return base64.b64decode(payload, validate=True)
    except (binascii.Error, ValueError) as error:
        raise BadImage("it is not base64 of an encoded image") from error


def from_numbers(value: Any) -> np.ndarray:
    """A uint8 array from nested lists, or an array, of numbers 0..255: [H][W] or [H][W][C] with C 1, 3 or 4.

    Raises:
        BadImage: If the rank, the channels, a type or a value is wrong.
    """
    import numpy as np

    try:
        array = np.asarray(value)
    except ValueError as error:
        raise BadImage("its rows differ in length") from error
    if array.dtype.kind not in "uif":
        raise BadImage("it holds something that is not a number")
    if array.ndim not in (2, 3) or not array.size or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)):
        raise BadImage(f"its shape is {list(array.shape)}, allowed are [H][W] and [H][W][C] with 1, 3 or 4 channels")
    if array.shape[0] * array.shape[1] > MAX_PIXELS:
        raise BadImage(f"it has more than {MAX_PIXELS} pixels")
    if not np.isfinite(array).all() or array.min() < 0 or array.max() > 255:
        raise BadImage("it has a number outside 0..255")
    return np.rint(array).astype(np.uint8)
