"""Readers of image sources: folders by class and scikit-learn's digits."""

from __future__ import annotations

import gzip
from collections.abc import Iterator

from components.data.read import RawRow, Roles, open_file
from components.data.units import Unit
from components.tasks.image_codec import to_png

MAX_IMAGE_BYTES = 64 << 20
"""A larger file is no sample: it is reported as corrupt without being read."""


def read_images(unit: Unit, roles: Roles) -> Iterator[RawRow]:
    """One row a file; a file that cannot be read is a corrupt sample."""
    for path, label in zip(unit.files, unit.labels, strict=True):
        yield image_row(path, label)


def image_row(path: str, label: str | None) -> RawRow:
    try:
        with open_file(path) as handle:
            content = handle.read(MAX_IMAGE_BYTES + 1)
    except OSError as error:
        return RawRow(None, label, problem=f"it cannot be read ({error.strerror or error})")
    if not content:
        return RawRow(None, label, problem="it is empty (0 bytes)")
    if len(content) > MAX_IMAGE_BYTES:
        return RawRow(None, label, problem=f"it has more than {MAX_IMAGE_BYTES} bytes")
    return RawRow(content, label)


def read_digits(unit: Unit, roles: Roles) -> Iterator[RawRow]:
    """The 1,797 8x8 images of scikit-learn as PNG; its 17 grey levels 0..16 become 0..255."""
    import numpy as np

    with gzip.open(unit.files[0]) as handle:
        values = np.loadtxt(handle, delimiter=",", dtype=np.int64)
    pixels = np.rint(values[:, :64] * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8)
    for image, label in zip(pixels, values[:, 64], strict=True):
        yield RawRow(to_png(image), str(label), "number")
