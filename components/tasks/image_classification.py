"""Image classification: encoded images in, one class out. Pixels are stored as uint8 and normalised per channel."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.errors import ArtifactError, RequestError
from components.tasks.base import Preprocessing, RawRows, check_inputs
from components.tasks.classification import Classification, ClassPreprocessing
from components.tasks.config import FeatureConfig
from components.tasks.image_codec import (
    BadImage,
    decode_image,
    from_base64,
    from_numbers,
    image_shape,
    to_pixels,
)

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

MAX_DEFAULT_SIZE = 64
"""Largest size chosen without being asked: beyond it a CPU is too slow."""
MIN_SIZE = 4


@dataclass(frozen=True)
class ImagePreprocessing(ClassPreprocessing):
    """Decode, convert, resize, normalise.

    Attributes:
        size: Height and width in pixels.
        channels: 1 (grey) or 3 (RGB).
        mean: Of each channel over the training pixels, on the scale 0..1.
        std: As `mean`.
    """

    classes: tuple[str, ...]
    size: int
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        values = {"task": ImageClassification.name, **asdict(self)}
        (folder / "preprocessing.json").write_text(json.dumps(values, indent=1, sort_keys=True))

    def encode(self, rows: RawRows) -> dict[str, list[Any]]:
        return {"pixels": [to_pixels(value, self.size, self.channels) for value in rows["image"]]}

    def collate(self, encoded: Mapping[str, Sequence[Any]]) -> dict[str, np.ndarray]:
        import numpy as np

        pixels = np.frombuffer(b"".join(encoded["pixels"]), dtype=np.uint8)
        images = pixels.reshape(-1, self.size, self.size, self.channels).transpose(0, 3, 1, 2)
        mean, std = (np.asarray(values, np.float32).reshape(1, -1, 1, 1) for values in (self.mean, self.std))
        return {"pixel_values": np.ascontiguousarray((images / np.float32(255) - mean) / std)}

    def model_inputs(self) -> dict[str, int]:
        return {"image_size": self.size, "channels": self.channels}

    def parse_inputs(self, inputs: Sequence[Any]) -> RawRows:
        check_inputs(inputs)
        return {"image": [parse_image(value, index) for index, value in enumerate(inputs)]}

    def parse_file(self, content: bytes) -> RawRows:
        try:
            decode_image(content)
        except BadImage as error:
            raise RequestError(f"The file cannot be used: {error}.", field="file") from error
        return {"image": [content]}

    def signature(self) -> list[dict[str, Any]]:
        return [{"name": "image", "datatype": "UINT8", "shape": [-1, self.size, self.size, self.channels]}]


def parse_image(value: Any, index: int) -> bytes | np.ndarray:
    """One image of a request: nested lists or an array of numbers 0..255, encoded bytes, or base64 of them."""
    try:
        if isinstance(value, str):
            value = from_base64(value)
        if isinstance(value, bytes):
            decode_image(value)
            return value
        if isinstance(value, list | tuple) or hasattr(value, "__array__"):
            return from_numbers(value)
    except BadImage as error:
        raise RequestError(f"inputs[{index}] cannot be used: {error}.", field=f"inputs[{index}]") from error
    raise RequestError(
        f"inputs[{index}] is a {type(value).__name__}; give an image as nested lists of 0..255 or as base64.",
        field=f"inputs[{index}]",
    )


class ImageClassification(Classification):
    """One class an image."""

    name = "image-classification"
    modality = "image"
    feature = "image"
    architectures = ("mlp", "cnn", "resnet", "vit")
    measures = ("height", "width", "channels")

    def fit(self, rows: Iterable[pa.Table], classes: Sequence[str], config: FeatureConfig) -> Preprocessing:
        size, channels = choose_shape(rows, config)
        mean, std = pixel_statistics(rows, size, channels)
        return ImagePreprocessing(tuple(classes), size, channels, mean, std)

    def load(self, folder: Path) -> Preprocessing:
        try:
            raw = json.loads((folder / "preprocessing.json").read_text())
            lists = {name: tuple(raw[name]) for name in ("classes", "mean", "std")}
            return ImagePreprocessing(size=int(raw["size"]), channels=int(raw["channels"]), **lists)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ArtifactError(f"{folder} holds no readable image preprocessing ({error}).") from error

    def check_sample(self, value: Any) -> str | None:
        try:
            decode_image(bytes(value))
        except BadImage as error:
            return str(error)
        return None

    def describe(self, value: Any) -> dict[str, int]:
        height, width, channels = image_shape(value)
        return {"height": height, "width": width, "channels": channels}


def choose_shape(rows: Iterable[pa.Table], config: FeatureConfig) -> tuple[int, int]:
    """Size and channels: what the spec says, else the median of height and width, and what most images have."""
    import numpy as np

    size, channels = config.image.size, config.image.channels
    if size is not None and channels is not None:
        return size, channels
    shapes = [image_shape(value) for table in rows for value in table.column("image").to_pylist()]
    median = int(np.median([side for height, width, _ in shapes for side in (height, width)]))
    common = Counter(shape[2] for shape in shapes)
    natural = 3 if common[3] >= common[1] else 1
    return size or min(max(median, MIN_SIZE), MAX_DEFAULT_SIZE), channels or natural


def pixel_statistics(rows: Iterable[pa.Table], size: int, channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel on the scale 0..1; a constant channel gets 1.

    Sums are of integers, so the order of the rows leaves no trace.
    """
    import numpy as np

    count, total, squares = 0, np.zeros(channels, np.int64), np.zeros(channels, np.int64)
    for table in rows:
        for value in table.column("image").to_pylist():
            pixels = np.frombuffer(to_pixels(value, size, channels), np.uint8).reshape(-1, channels).astype(np.int64)
            count, total, squares = count + len(pixels), total + pixels.sum(0), squares + (pixels**2).sum(0)
    mean = total / count
    std = np.sqrt(np.maximum(squares / count - mean**2, 0)) / 255
    rounded = [round(float(value), 6) for value in std]
    return tuple(round(float(value) / 255, 6) for value in mean), tuple(value or 1.0 for value in rounded)
