"""The index: one small row for each row of the source, kept in memory while the payload streams past."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from components.data.batches import DROPPED, Item
from components.data.clean import NameRow
from components.data.units import Unit, row_name

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa


def unit_items(units: Sequence[Unit], parts: Sequence[bytes] | None = None) -> list[Item]:
    """What a driver hands out, one item a unit; `parts` holds the part of each of its rows as int8 bytes."""
    empty = [b""] * len(units)
    return [
        {"number": number, "unit": unit.to_json(), "parts": kept}
        for number, (unit, kept) in enumerate(zip(units, parts or empty, strict=True))
    ]


def concat_index(tables: Iterable[pa.Table]) -> pa.Table:
    """All index batches as one table in the order of the source."""
    import pyarrow as pa

    found = list(tables)
    if not found:
        return pa.table({"row": pa.array([], pa.int64())})
    table = pa.concat_tables(found)
    return table.sort_by([("unit", "ascending"), ("row", "ascending")]).combine_chunks()


def row_namer(index: pa.Table, units: Sequence[Unit]) -> NameRow:
    """A function from a row of the index to its name for people."""

    def name_row(row: int) -> str:
        return row_name(units[index["unit"][row].as_py()], index["row"][row].as_py())

    return name_row


def parts_by_unit(index: pa.Table, kept: np.ndarray, parts: np.ndarray, units: int) -> list[bytes]:
    """The part of every row of every unit (DROPPED where it is not kept), as int8 bytes.

    Args:
        index: The whole index.
        kept: Rows of the index that are kept.
        parts: The part of each kept row.
        units: Number of units; one without rows gets empty bytes.
    """
    import numpy as np

    all_parts = np.full(index.num_rows, DROPPED, np.int8)
    all_parts[kept] = parts
    bounds = np.searchsorted(index.column("unit").to_numpy(), np.arange(units + 1))
    return [all_parts[start:stop].tobytes() for start, stop in pairwise(bounds)]


def summarise(values: Any) -> dict[str, float]:
    """Minimum, quartiles, 95th percentile, maximum and mean of an integer column without its nulls."""
    import numpy as np

    numbers = np.asarray(values)
    low, quarter, median, upper, high, top = (float(v) for v in np.percentile(numbers, [0, 25, 50, 75, 95, 100]))
    return {
        "min": low,
        "p25": quarter,
        "median": median,
        "p75": upper,
        "p95": high,
        "max": top,
        "mean": float(numbers.mean()),
    }
