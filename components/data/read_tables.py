"""Readers of tables: CSV, JSON lines and Parquet. Only the columns with a role are kept."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from components.data.read import BATCH_ROWS, RawRow, Roles, open_file, safe_path
from components.data.read_images import image_row
from components.data.units import Unit, open_parquet
from components.errors import DataError, first_line

if TYPE_CHECKING:
    import pyarrow.csv as arrow_csv

CSV_BLOCK_BYTES = 2 << 20
"""Bytes of CSV parsed at a time; no row may be longer. Arrow reads up to 32 of these ahead."""
MISSING = ("", "NaN", "nan", "NULL", "null")
"""Cells that stand for no value in CSV, where there is no other way to write it."""


def read_csv(unit: Unit, roles: Roles) -> Iterator[RawRow]:
    """Streams a CSV file with a header. Every cell is text; rows with too many or too few cells are corrupt."""
    import pyarrow as pa

    path = unit.files[0]
    invalid: list[str] = []
    try:
        with open_file(path) as handle:
            for batch in open_csv(handle, roles, invalid):
                cells = batch.to_pydict()
                while invalid:
                    yield RawRow(None, None, problem=invalid.pop(0))
                for index in range(batch.num_rows):
                    yield cell_row({name: cells[name][index] for name in roles.columns}, roles, path)
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read as CSV ({first_line(error)}).", field="data.source") from error
    yield from (RawRow(None, None, problem=problem) for problem in invalid)


def open_csv(handle: Any, roles: Roles, invalid: list[str]) -> arrow_csv.CSVStreamingReader:
    import pyarrow as pa
    from pyarrow import csv

    def note_invalid(row: csv.InvalidRow) -> str:
        invalid.append(f"line {row.number} has {row.actual_columns} cells instead of {row.expected_columns}")
        return "skip"

    return csv.open_csv(
        handle,
        # One thread: only then does pyarrow know the line of an invalid row.
        read_options=csv.ReadOptions(use_threads=False, block_size=CSV_BLOCK_BYTES),
        parse_options=csv.ParseOptions(newlines_in_values=True, invalid_row_handler=note_invalid),
        convert_options=csv.ConvertOptions(
            include_columns=roles.columns,
            # Bytes, not text: one cell that is not UTF-8 must not end the file.
            column_types={name: pa.binary() for name in roles.columns},
            null_values=list(MISSING),
            strings_can_be_null=True,
        ),
    )


def cell_row(cells: dict[str, bytes | None], roles: Roles, path: str) -> RawRow:
    try:
        values = {name: cell.decode() if cell is not None else None for name, cell in cells.items()}
    except UnicodeDecodeError:
        return RawRow(None, None, problem="it is not UTF-8")
    return table_row(values, roles, path)


def read_jsonl(unit: Unit, roles: Roles) -> Iterator[RawRow]:
    """One JSON object a line; blank lines count as no row."""
    path = unit.files[0]
    with open_file(path) as handle:
        for line in handle:
            if line.strip():
                yield json_row(line, roles, path)


def json_row(line: bytes, roles: Roles, path: str) -> RawRow:
    try:
        value = json.loads(line.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        return RawRow(None, None, problem=f"it is not JSON ({first_line(error)})")
    if not isinstance(value, dict):
        return RawRow(None, None, problem=f"it is a JSON {type(value).__name__}, not an object")
    absent = next((name for name in roles.columns if name not in value), None)
    if absent is not None:
        return RawRow(None, None, problem=f"it has no `{absent}`")
    return table_row(value, roles, path)


def read_parquet(unit: Unit, roles: Roles) -> Iterator[RawRow]:
    """Streams a run of row groups."""
    path = unit.files[0]
    with open_parquet(path) as file:
        start, stop = unit.row_groups or (0, file.num_row_groups)
        for batch in file.iter_batches(BATCH_ROWS, list(range(start, stop)), roles.columns):
            yield from (table_row(row, roles, path) for row in batch.to_pylist())


def table_row(values: dict[str, Any], roles: Roles, path: str) -> RawRow:
    """A row from the cells of a table, whatever its format."""
    label, label_type, problem = label_text(values[roles.label] if roles.label else None)
    key = key_text(values[roles.key]) if roles.key else None
    if problem is not None:
        return RawRow(None, None, label_type, key, f"`{roles.label}` {problem}")
    if roles.modality == "text":
        row = text_row(values[roles.feature], label, roles.feature)
    else:
        row = cell_image(values[roles.feature], label, path)
    row.label_type, row.key = label_type, key
    if roles.target and row.problem is None:
        target = text_row(values[roles.target], None, roles.target)
        row.target, row.problem = target.feature, target.problem
    return row


def text_row(value: Any, label: str | None, column: str) -> RawRow:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return RawRow(None, label)
    if not isinstance(value, str):
        return RawRow(None, label, problem=f"`{column}` is a {type(value).__name__}, not a text")
    if not is_unicode(value):
        return RawRow(None, label, problem=f"`{column}` holds half a surrogate pair")
    return RawRow(value if value.strip() else None, label)


def is_unicode(text: str) -> bool:
    """False for what JSON's \\ud800 makes: half a character, which no file can hold."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def cell_image(value: Any, label: str | None, path: str) -> RawRow:
    """An image column: encoded bytes, {"bytes": ...} as Hugging Face writes it, or a path beside the table."""
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    if value is None:
        return RawRow(None, label)
    if isinstance(value, bytes):
        return RawRow(value, label) if value else RawRow(None, label)
    target = safe_path(value, path) if isinstance(value, str) else None
    if target is None:
        return RawRow(None, label, problem="its image is neither bytes nor a path below the table's folder")
    return image_row(str(target), label)


def label_text(value: Any) -> tuple[str | None, str, str | None]:
    """A class as text, the type it had, and why it is none. NaN and blanks are missing, not classes."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None, "missing", None
    if isinstance(value, bool):
        return str(value).lower(), "boolean", None
    if isinstance(value, int) or (isinstance(value, float) and value.is_integer()):
        return str(int(value)), "number", None
    if isinstance(value, str) and is_unicode(value):
        return value.strip() or None, "text", None
    return None, "other", f"is a {type(value).__name__}, not a class"


def key_text(value: Any) -> str | None:
    """A group or time as text that sorts as the value does: numbers are told apart when all rows are known."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    return value.isoformat() if hasattr(value, "isoformat") else str(value)
