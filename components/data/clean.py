"""Decides from the index alone which rows are kept. Numbers in, numbers out: no payload, no cluster."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from components.data.config import DataConfig
from components.errors import DataError

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

NAMED_ROWS = 20
"""Corrupt rows that the report names."""
MIN_CLASS_ROWS = 3
"""One for each of train, validation and test."""

NameRow = Callable[[int], str]
"""Gives the name of a row of the index, for people."""


@dataclass
class Cleaned:
    """What is left, and what became of the rest.

    Attributes:
        kept: Row numbers in the index, ascending, shape (kept rows,).
        classes: Names in their order; none where texts are written.
        labels: Class index of each kept row; 0 for all where there are no classes.
        dropped: Rows by reason.
        corrupt: Names and reasons of the first corrupt rows.
        rare: Rows of each class that was dropped for having too few.
        conflicts: Names of the first rows that agree with another in the feature but not in the label.
    """

    kept: np.ndarray
    classes: tuple[str, ...]
    labels: np.ndarray
    dropped: dict[str, int]
    corrupt: list[dict[str, str]] = field(default_factory=list)
    rare: dict[str, int] = field(default_factory=dict)
    conflicts: list[str] = field(default_factory=list)


def clean_rows(index: pa.Table, config: DataConfig, name_row: NameRow) -> Cleaned:
    """Drops what cannot be learnt from.

    Raises:
        DataError: If there is no row, too many are corrupt, labels are of several types, or a class is too small.
    """
    import numpy as np

    if not index.num_rows:
        raise DataError(f"{config.source} has no rows.", field="data.source")
    pairs = "target_id" in index.column_names
    check_label_types(index, config, name_row)
    problems = find_problems(index, config)
    check_corrupt(problems, index.num_rows, config, name_row)
    kept, missing = usable_rows(index, problems, config, name_row)
    classes, labels = ((), np.zeros(len(kept), np.int64)) if pairs else order_classes(index, kept)
    cleaned = Cleaned(kept, classes, labels, {"corrupt": len(problems), "missing": missing})
    cleaned.corrupt = [{"row": name_row(row), "reason": problems[row]} for row in list(problems)[:NAMED_ROWS]]
    if pairs:
        if "deduplicate" in config.clean:
            merge_equal_pairs(cleaned, index)
        return cleaned
    if "deduplicate" in config.clean:
        merge_duplicates(cleaned, row_ids(index, kept), name_row)
    handle_rare(cleaned, config)
    return cleaned


def find_problems(index: pa.Table, config: DataConfig) -> dict[int, str]:
    """Reason by row number, ascending: what reading and decoding found, and rows without a label, target or key."""
    import numpy as np

    problems = index.column("problem").combine_chunks()
    reasons = {int(row): problems[int(row)].as_py() for row in np.flatnonzero(is_present(index, "problem"))}
    feature = is_present(index, "id")
    answer, lacking = "label", f"its label is missing ({config.columns.label})"
    if "target_id" in index.column_names:
        answer, lacking = "target_id", f"its target is empty ({config.columns.target})"
    unanswered = np.flatnonzero(feature & ~is_present(index, answer))
    reasons |= {int(row): lacking for row in unanswered if int(row) not in reasons}
    if config.split.by in ("group", "time"):
        keyless = np.flatnonzero(feature & ~is_present(index, "key"))
        reasons |= {int(row): f"its `{config.split.column}` is missing" for row in keyless if int(row) not in reasons}
    return dict(sorted(reasons.items()))


def is_present(index: pa.Table, column: str) -> np.ndarray:
    """Where a column is not null, shape (rows,)."""
    return index.column(column).is_valid().to_numpy()


def check_corrupt(problems: dict[int, str], total: int, config: DataConfig, name_row: NameRow) -> None:
    """Refuses more corrupt rows than `max_corrupt` allows, naming the first."""
    if len(problems) > config.max_corrupt * total:
        row, reason = next(iter(problems.items()))
        raise DataError(
            f"{len(problems)} of {total} rows cannot be used, data.max_corrupt allows {config.max_corrupt:g} of them; "
            f"the first is {name_row(row)}: {reason}.",
            field="data.max_corrupt",
        )


def usable_rows(
    index: pa.Table, problems: dict[int, str], config: DataConfig, name_row: NameRow
) -> tuple[np.ndarray, int]:
    """Rows with a feature and without a problem, and how many lack the feature."""
    import numpy as np

    sound = np.ones(index.num_rows, bool)
    sound[list(problems)] = False
    present = is_present(index, "id")
    missing = np.flatnonzero(sound & ~present)
    if len(missing) and "drop-missing" not in config.clean:
        raise DataError(
            f"{len(missing)} rows have an empty feature, the first is {name_row(int(missing[0]))}; "
            "add drop-missing to data.clean or fill them.",
            field="data.clean",
        )
    kept = np.flatnonzero(sound & present)
    if not len(kept):
        raise DataError(
            f"{config.source} has no usable row: all {index.num_rows} are corrupt or empty.", field="data.source"
        )
    return kept, len(missing)


def check_label_types(index: pa.Table, config: DataConfig, name_row: NameRow) -> None:
    """Refuses labels that are numbers in some rows and text in others: a column that changed its meaning half-way."""
    import numpy as np

    types = np.array(index.column("label_type").to_pylist(), dtype=object)
    known = [name for name in ("text", "number", "boolean") if (types == name).any()]
    if len(known) > 1:
        rarest = min(known, key=lambda name: int((types == name).sum()))
        common = max(known, key=lambda name: int((types == name).sum()))
        row = name_row(int(np.flatnonzero(types == rarest)[0]))
        raise DataError(
            f"{row}: column '{config.columns.label}' holds a {rarest} here and a {common} elsewhere; give it one type.",
            field="data.columns.label",
        )


def order_classes(index: pa.Table, kept: np.ndarray) -> tuple[tuple[str, ...], np.ndarray]:
    """Class names, by value if all are whole numbers and else by name, and the class index of each kept row."""
    import numpy as np

    encoded = index.column("label").take(kept).combine_chunks().dictionary_encode()
    names = encoded.dictionary.to_pylist()
    numeric = all(name.removeprefix("-").isdecimal() for name in names)
    order = sorted(
        range(len(names)), key=(lambda code: (int(names[code]), names[code])) if numeric else names.__getitem__
    )
    rank = np.empty(len(names), np.int64)
    rank[order] = np.arange(len(names))
    return tuple(names[code] for code in order), rank[encoded.indices.to_numpy()]


def row_ids(index: pa.Table, rows: np.ndarray, column: str = "id") -> np.ndarray:
    """Identities as four 64-bit words, uint64, shape (rows, 4)."""
    import numpy as np

    ids = index.column(column).take(rows).combine_chunks()
    return np.frombuffer(ids.buffers()[1], ">u8").reshape(-1, 4)[ids.offset : ids.offset + len(ids)].astype(np.uint64)


def number_identities(ids: np.ndarray) -> np.ndarray:
    """A number for each row, equal exactly where the identity is equal, shape (rows,)."""
    import numpy as np

    order = np.lexsort(ids.T[::-1])
    starts = np.ones(len(ids), bool)
    starts[1:] = (ids[order][1:] != ids[order][:-1]).any(axis=1)
    numbers = np.empty(len(ids), np.int64)
    numbers[order] = np.cumsum(starts) - 1
    return numbers


def merge_duplicates(cleaned: Cleaned, ids: np.ndarray, name_row: NameRow) -> None:
    """Keeps the first of equal rows, and none of those that agree in the feature but not in the label."""
    import numpy as np

    numbers = number_identities(ids)
    highest = np.full(numbers.max() + 1, -1)
    lowest = np.full(numbers.max() + 1, len(cleaned.classes))
    np.maximum.at(highest, numbers, cleaned.labels)
    np.minimum.at(lowest, numbers, cleaned.labels)
    conflicting = (highest != lowest)[numbers]
    first = np.zeros(len(ids), bool)
    first[np.unique(numbers, return_index=True)[1]] = True
    keep = first & ~conflicting
    cleaned.dropped["conflicting_labels"] = int(conflicting.sum())
    cleaned.dropped["duplicates"] = int((~first & ~conflicting).sum())
    cleaned.conflicts = [name_row(int(row)) for row in cleaned.kept[conflicting][:NAMED_ROWS]]
    cleaned.kept, cleaned.labels = cleaned.kept[keep], cleaned.labels[keep]


def merge_equal_pairs(cleaned: Cleaned, index: pa.Table) -> None:
    """Keeps the first of rows that agree in source and target.

    A source with several targets keeps them all, unlike a text with several classes: a sentence has many translations.
    """
    import numpy as np

    both = [row_ids(index, cleaned.kept, column) for column in ("id", "target_id")]
    first = np.sort(np.unique(number_identities(np.hstack(both)), return_index=True)[1])
    cleaned.dropped["duplicates"] = len(cleaned.kept) - len(first)
    cleaned.kept, cleaned.labels = cleaned.kept[first], cleaned.labels[first]


def handle_rare(cleaned: Cleaned, config: DataConfig) -> None:
    """Refuses or drops classes that cannot have a row in each part, and leaves at least two classes."""
    import numpy as np

    counts = np.bincount(cleaned.labels, minlength=len(cleaned.classes))
    rare = {name: int(count) for name, count in zip(cleaned.classes, counts, strict=True) if count < MIN_CLASS_ROWS}
    if rare and config.rare == "refuse":
        raise DataError(rare_message(rare), field="data.rare")
    keep = counts >= MIN_CLASS_ROWS
    rows = keep[cleaned.labels]
    cleaned.rare, cleaned.dropped["rare"] = rare, int((~rows).sum())
    cleaned.labels = (np.cumsum(keep) - 1)[cleaned.labels[rows]]
    cleaned.kept = cleaned.kept[rows]
    cleaned.classes = tuple(name for name, kept in zip(cleaned.classes, keep, strict=True) if kept)
    if len(cleaned.classes) < 2:
        left = f"the one class {cleaned.classes[0]!r}" if cleaned.classes else "no class"
        raise DataError(f"{config.source} has {left} after cleaning; at least two are needed.", field="data.source")


def rare_message(rare: dict[str, int]) -> str:
    names = ", ".join(f"{name!r} ({count})" for name, count in list(rare.items())[:5])
    more = f" and {len(rare) - 5} more" if len(rare) > 5 else ""
    return (
        f"Too few distinct rows with the label {names}{more}: each class needs {MIN_CLASS_ROWS}, for train, "
        "validation and test; add rows or set data.rare: drop."
    )
