"""Reads units as batches of raw rows of one schema, whatever the source.

row: int64            number within the unit, the same in every pass
feature: string       (text) or binary (image): null when missing
label: string         null when missing
label_type: string    what the label was before it became a string: `text`, `number`, `boolean`, `missing`
key: string           of the group or time column, where the split names one
target: string        text that is to be written, for such a task alone
problem: string       why the row cannot be used, as far as reading tells
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

from components.data.units import Unit

if TYPE_CHECKING:
    import pyarrow as pa

BATCH_ROWS = 1024
BATCH_BYTES = 16 << 20
"""A batch ends with the row that exceeds either."""


@dataclass(frozen=True)
class Roles:
    """Which column of the source plays which role."""

    modality: Literal["image", "text"]
    feature: str
    label: str | None
    """Of a class; None where texts are written."""
    key: str | None = None
    target: str | None = None
    """Of a text that is to be written."""

    @property
    def columns(self) -> list[str]:
        """The columns a table must have, each once."""
        return list(dict.fromkeys(name for name in (self.feature, self.label, self.key, self.target) if name))


@dataclass
class RawRow:
    """One row as read; plain Python values."""

    feature: Any
    label: str | None
    label_type: str = "missing"
    key: str | None = None
    problem: str | None = None
    target: str | None = None


def open_file(path: str) -> BinaryIO | pa.NativeFile:
    """A local file or an S3 object, for reading."""
    if path.startswith("s3://"):
        from components.data.s3_source import open_object

        return open_object(path)
    return open(path, "rb")


def read_unit(unit: Unit, roles: Roles) -> Iterator[pa.Table]:
    """Batches of raw rows, in order.

    Raises:
        DataError: If the file is torn or not what its name says.
    """
    from components.data import read_images, read_tables, read_texts

    readers = {
        "csv": read_tables.read_csv,
        "jsonl": read_tables.read_jsonl,
        "parquet": read_tables.read_parquet,
        "text": read_texts.read_text,
        "images": read_images.read_images,
        "digits": read_images.read_digits,
    }
    start, rows, size_bytes = 0, [], 0
    for row in readers[unit.kind](unit, roles):
        rows.append(row)
        size_bytes += len(row.feature or "") + len(row.target or "")
        if len(rows) == BATCH_ROWS or size_bytes > BATCH_BYTES:
            yield to_table(rows, start, roles)
            start, rows, size_bytes = start + len(rows), [], 0
    if rows:
        yield to_table(rows, start, roles)


def to_table(rows: Sequence[RawRow], start: int, roles: Roles) -> pa.Table:
    import pyarrow as pa

    feature_type = pa.binary() if roles.modality == "image" else pa.string()
    texts = ("label", "label_type", "key", "problem", *(["target"] if roles.target else []))
    columns = {name: [getattr(row, name) for row in rows] for name in texts}
    return pa.table(
        {
            "row": pa.array(range(start, start + len(rows)), pa.int64()),
            "feature": pa.array([row.feature for row in rows], feature_type),
            **{name: pa.array(values, pa.string()) for name, values in columns.items()},
        }
    )


def safe_path(name: str, table_path: str) -> Path | None:
    """The file a table's cell names, below the table's own folder; None if it would lead outside."""
    folder = Path(table_path).parent.resolve()
    if "\0" in name:
        return None
    path = (folder / name).resolve()
    return path if path.is_relative_to(folder) else None
