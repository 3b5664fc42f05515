"""What is done to one unit of the source, whichever driver calls it: index its rows, or encode those that are kept.

Both are generators over batches, so that a unit may be larger than memory.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from components.data.read import Roles, read_unit
from components.data.units import Unit, row_name
from components.errors import DataError
from components.tasks import Preprocessing, get_task

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

Item = Mapping[str, Any]
"""What a driver hands to a batch function: {"number": of the unit, "unit": its JSON, "parts": bytes}."""

DROPPED = -1


@dataclass(frozen=True)
class IndexRows:
    """First pass: everything about each row but its payload.

    Gives tables of unit, row, id (32 bytes), order (uint64), label, label_type, key, problem, the task's measures, and
    where texts are written target_id (32 bytes).
    """

    task: str
    roles: Roles
    seed: int

    def __call__(self, item: Item) -> Iterator[pa.Table]:
        for raw in read_unit(Unit.from_json(item["unit"]), self.roles):
            yield self.index(raw, item["number"])

    def index(self, raw: pa.Table, unit: int) -> pa.Table:
        import pyarrow as pa

        features, problems = raw.column("feature").to_pylist(), raw.column("problem").to_pylist()
        ids = digests(features)
        problems, measures = self.inspect(features, problems)
        targets = {"target_id": digests(raw.column("target").to_pylist())} if self.roles.target else {}
        return pa.table(
            {
                "unit": pa.array([unit] * len(features), pa.int32()),
                "row": raw.column("row"),
                "id": pa.array(ids, pa.binary(32)),
                "order": pa.array([split_order(self.seed, row_id) for row_id in ids], pa.uint64()),
                **{name: raw.column(name) for name in ("label", "label_type", "key")},
                "problem": pa.array(problems, pa.string()),
                **{name: pa.array(values, pa.int32()) for name, values in measures.items()},
                **{name: pa.array(values, pa.binary(32)) for name, values in targets.items()},
            }
        )

    def inspect(self, features: list[Any], problems: list[str | None]) -> tuple[list[str | None], dict[str, list]]:
        """Why each row cannot be used, and its measures (null where it cannot)."""
        task = get_task(self.task)
        found, measured = [], []
        for value, problem in zip(features, problems, strict=True):
            if problem is None and value is not None:
                problem = task.check_sample(value)
            usable = problem is None and value is not None
            measured.append(task.describe(value) if usable else {})
            found.append(problem)
        return found, {name: [values.get(name) for values in measured] for name in task.measures}


def digests(values: list[Any]) -> list[bytes | None]:
    return [feature_digest(value) if value is not None else None for value in values]


def feature_digest(value: str | bytes) -> bytes:
    """Identity of a row: SHA-256 of its feature."""
    return hashlib.sha256(value.encode() if isinstance(value, str) else value).digest()


def split_order(seed: int, row_id: bytes | None) -> int:
    """Where a row stands in the shuffle of `seed`: 64 bits that depend on nothing else but its identity."""
    if row_id is None:
        return 0
    return int.from_bytes(hashlib.sha256(f"split {seed} ".encode() + row_id).digest()[:8], "big")


@dataclass(frozen=True)
class SelectRows:
    """Raw rows whose entry in `parts` is not DROPPED, as columns part, id, the feature's role, and label or target."""

    task: str
    roles: Roles
    classes: tuple[str, ...]

    def __call__(self, item: Item) -> Iterator[pa.Table]:
        import numpy as np

        unit, parts = Unit.from_json(item["unit"]), np.frombuffer(item["parts"], dtype=np.int8)
        rows = 0
        for raw in read_unit(unit, self.roles):
            rows += raw.num_rows
            if rows > len(parts):
                raise changed(unit, len(parts))
            selected = self.select(raw, parts[rows - raw.num_rows : rows])
            if selected.num_rows:
                yield selected
        if rows != len(parts):
            raise changed(unit, rows)

    def select(self, raw: pa.Table, parts: np.ndarray) -> pa.Table:
        import numpy as np
        import pyarrow as pa

        kept = np.flatnonzero(parts != DROPPED)
        rows = raw.take(kept)
        features = rows.column("feature").to_pylist()
        return pa.table(
            {
                "part": pa.array(parts[kept]),
                "id": pa.array([feature_digest(value).hex() for value in features], pa.string()),
                **self.answers(rows),
                get_task(self.task).feature: rows.column("feature"),
            }
        )

    def answers(self, rows: pa.Table) -> dict[str, Any]:
        """What is to be learnt of each row: `label`, or the target under its role."""
        import pyarrow as pa

        role = get_task(self.task).target
        if role is not None:
            return {role: rows.column("target")}
        codes = {name: code for code, name in enumerate(self.classes)}
        return {"label": pa.array([codes[label] for label in rows.column("label").to_pylist()], pa.int64())}


def changed(unit: Unit, row: int) -> DataError:
    known = min(row, len(unit.files) - 1) if unit.labels else row
    return DataError(f"{row_name(unit, known)} changed while it was read; start again.", field="data.source")


@dataclass(frozen=True)
class EncodeRows:
    """Last pass: the selected rows with their encoded columns, ready to be written."""

    select: SelectRows
    preprocessing: Preprocessing

    def __call__(self, item: Item) -> Iterator[pa.Table]:
        columns = get_task(self.select.task).columns
        for rows in self.select(item):
            encoded = self.preprocessing.encode({name: rows.column(name).to_pylist() for name in columns})
            for name, values in encoded.items():
                rows = rows.append_column(name, to_array(values))
            yield rows


def to_array(values: list[Any]) -> pa.Array:
    """Encoded values as Arrow: pixels of one size as fixed-size binary, token ids as lists of int32."""
    import pyarrow as pa

    if isinstance(values[0], bytes):
        return pa.array(values, pa.binary(len(values[0])))
    return pa.array(values, pa.list_(pa.int32()))
