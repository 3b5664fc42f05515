"""Units of reading: what one task reads in one go. The same units in the same order in every pass over the source."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from components.data.source import Source, SourceKind
from components.errors import DataError, first_line

if TYPE_CHECKING:
    import pyarrow.parquet as pq

IMAGES_PER_UNIT = 256
PIECE_BYTES = 4 << 20
"""Of a text file."""
ROW_GROUP_ROWS = 65_536
"""Parquet row groups are gathered until they hold this many rows."""


@dataclass(frozen=True)
class Unit:
    """A file, a piece of a text file, a run of Parquet row groups, or a few images.

    Attributes:
        files: Paths or s3:// URIs; several only for images.
        labels: Class of each file, for images alone.
        row_groups: First and one past the last, for Parquet alone.
        first_row: Rows of the file before this unit.
        byte_range: First and one past the last, for texts alone; the piece has the lines that begin there.
    """

    kind: SourceKind
    files: tuple[str, ...]
    labels: tuple[str, ...] = ()
    row_groups: tuple[int, int] | None = None
    first_row: int = 0
    byte_range: tuple[int, int] | None = None

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Unit:
        raw = json.loads(text)
        groups, bytes_ = raw["row_groups"], raw["byte_range"]
        return cls(
            raw["kind"],
            tuple(raw["files"]),
            tuple(raw["labels"]),
            tuple(groups) if groups else None,
            raw["first_row"],
            tuple(bytes_) if bytes_ else None,
        )


def plan_units(source: Source) -> list[Unit]:
    """Divides a source. A CSV or JSONL file is one unit (only a reader from its start knows where rows begin)."""
    if source.kind == "images":
        return list(image_units(source))
    if source.kind == "parquet":
        return [unit for file in source.files for unit in parquet_units(file.path)]
    if source.kind == "text":
        return [unit for file in source.files for unit in text_units(file.path, file.size_bytes)]
    return [Unit(source.kind, (file.path,)) for file in source.files]


def text_units(path: str, size_bytes: int) -> Iterator[Unit]:
    for start in range(0, max(size_bytes, 1), PIECE_BYTES):
        yield Unit("text", (path,), byte_range=(start, min(start + PIECE_BYTES, size_bytes)))


def image_units(source: Source) -> Iterator[Unit]:
    for start in range(0, len(source.files), IMAGES_PER_UNIT):
        files = source.files[start : start + IMAGES_PER_UNIT]
        yield Unit("images", tuple(file.path for file in files), tuple(str(file.label) for file in files))


def parquet_units(path: str) -> Iterator[Unit]:
    with open_parquet(path) as file:
        metadata = file.metadata
    start, first_row, rows = 0, 0, 0
    for group in range(metadata.num_row_groups):
        rows += metadata.row_group(group).num_rows
        if rows >= ROW_GROUP_ROWS or group == metadata.num_row_groups - 1:
            yield Unit("parquet", (path,), row_groups=(start, group + 1), first_row=first_row)
            start, first_row, rows = group + 1, first_row + rows, 0


@contextmanager
def open_parquet(path: str) -> Iterator[pq.ParquetFile]:
    """A Parquet file, its footer read, for as long as the block lasts.

    Raises:
        DataError: If it is truncated or no Parquet.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    from components.data.read import open_file

    try:
        with open_file(path) as handle:
            yield pq.ParquetFile(handle)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path} is not a whole Parquet file ({first_line(error)}).", field="data.source") from error


def row_name(unit: Unit, row: int) -> str:
    """What a person would call a row: an image's path, or the file and the row counted from 1."""
    if unit.kind == "images":
        return unit.files[row]
    if unit.kind == "text":
        return unit.files[0]
    return f"{unit.files[0]}, row {unit.first_row + row + 1}"
