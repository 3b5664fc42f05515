"""Decides which part each kept row belongs to. Numbers in, numbers out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from components.artifacts.dataset import SPLITS
from components.data.clean import Cleaned, number_identities, row_ids
from components.data.config import SplitConfig
from components.errors import DataError

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

TRAIN, VALIDATION, TEST = range(len(SPLITS))


def split_rows(index: pa.Table, cleaned: Cleaned, config: SplitConfig) -> np.ndarray:
    """The part of each kept row, int8, shape (kept rows,).

    Rows of one identity always share a part, also where duplicates were kept: nothing leaks from train to test.

    Raises:
        DataError: If a part would be empty, or a class has no row to train on.
    """
    import numpy as np

    numbers = number_identities(row_ids(index, cleaned.kept))
    _, first, copies = np.unique(numbers, return_index=True, return_inverse=True)
    rows, labels = cleaned.kept[first], cleaned.labels[first]
    parts = split_unique(index, rows, labels, config)[copies].astype(np.int8)
    check_parts(parts, cleaned, config)
    check_overlap(numbers, parts)
    return parts


def split_unique(index: pa.Table, rows: np.ndarray, labels: np.ndarray, config: SplitConfig) -> np.ndarray:
    """Parts of rows that all differ."""
    import numpy as np

    if config.by == "random":
        return split_by_class(index.column("order").to_numpy()[rows], row_ids(index, rows), labels, config)
    if config.by == "position":
        return split_in_order(np.argsort(rows, kind="stable"), config)
    keys = index.column("key").take(rows).to_pylist()
    if config.by == "time":
        ranks = rank_times(keys)
        return split_in_order(np.lexsort((rows, ranks)), config)
    return split_by_group(keys, config)


def part_sizes(count: int, config: SplitConfig) -> tuple[int, int]:
    """Rows of validation and of test out of `count`: the rounded shares, at least one each, one left to train on."""
    test = max(1, round(count * config.test)) if config.test else 0
    validation = max(1, round(count * config.validation))
    while validation + test >= count and max(validation, test) > 1:
        validation, test = (validation - 1, test) if validation >= test else (validation, test - 1)
    return validation, test


def split_by_class(order: np.ndarray, ids: np.ndarray, labels: np.ndarray, config: SplitConfig) -> np.ndarray:
    """Stratified: within each class, the rows that come first in the shuffle are test, the next validation.

    The shuffle is a digest of (seed, identity), so the order of the file and other classes do not matter.
    """
    import numpy as np

    parts = np.full(len(labels), TRAIN)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        shuffled = members[np.lexsort((ids[members, 0], order[members]))]
        validation, test = part_sizes(len(members), config)
        parts[shuffled[:test]] = TEST
        parts[shuffled[test : test + validation]] = VALIDATION
    return parts


def split_in_order(order: np.ndarray, config: SplitConfig) -> np.ndarray:
    """The first rows of `order` train, the next validate, the last test."""
    import numpy as np

    validation, test = part_sizes(len(order), config)
    parts = np.full(len(order), TRAIN)
    parts[order[len(order) - test - validation :]] = VALIDATION
    parts[order[len(order) - test :]] = TEST
    return parts


def rank_times(keys: list[str]) -> np.ndarray:
    """Times as ranks: by number if all are numbers, else by name (ISO 8601 sorts so)."""
    import numpy as np

    try:
        values = np.array([float(key) for key in keys])
    except ValueError:
        values = np.array(keys)
    return np.unique(values, return_inverse=True)[1]


def split_by_group(keys: list[str], config: SplitConfig) -> np.ndarray:
    """Whole groups, shuffled by a digest of (seed, group); parts are filled to their share, test first."""
    import numpy as np

    from components.data.batches import feature_digest, split_order

    names, groups = np.unique(np.array(keys), return_inverse=True)
    needed = 3 if config.test else 2
    if len(names) < needed:
        raise DataError(
            f"Column {config.column!r} has {len(names)} groups; a split by group needs at least {needed}.",
            field="data.split.column",
        )
    shuffled = sorted(range(len(names)), key=lambda group: split_order(config.seed, feature_digest(str(names[group]))))
    return fill_groups(np.bincount(groups), shuffled, config)[groups]


def fill_groups(sizes: np.ndarray, shuffled: list[int], config: SplitConfig) -> np.ndarray:
    """The part of each group, shape (groups,). Each part gets a group at least."""
    import numpy as np

    parts = np.full(len(sizes), TRAIN)
    left = list(shuffled)
    validation, test = part_sizes(int(sizes.sum()), config)
    for part, wanted, reserved in ((TEST, test, 2), (VALIDATION, validation, 1)):
        filled = 0
        while filled < wanted and len(left) > reserved:
            group = left.pop(0)
            parts[group], filled = part, filled + int(sizes[group])
    return parts


def check_parts(parts: np.ndarray, cleaned: Cleaned, config: SplitConfig) -> None:
    """Refuses an empty part, and a class without a row to train on (or, split at random, in any part)."""
    import numpy as np

    wanted = [TRAIN, VALIDATION, *([TEST] if config.test else [])]
    for part in wanted:
        if not (parts == part).any() and not cleaned.classes:
            raise DataError(
                f"The split by {config.by} leaves no row in {SPLITS[part]}, for there are {len(parts)} in all; add "
                "rows, or change data.split.",
                field="data.split",
            )
        present = np.bincount(cleaned.labels[parts == part], minlength=len(cleaned.classes)) > 0
        strict = part == TRAIN or config.by == "random"
        if not present.any() or (strict and not present.all()):
            name = cleaned.classes[int(np.flatnonzero(~present)[0])]
            raise DataError(
                f"The split by {config.by} leaves no row of class {name!r} in {SPLITS[part]}; "
                "add rows of it, change data.split, or set data.rare: drop.",
                field="data.split",
            )


def check_overlap(numbers: np.ndarray, parts: np.ndarray) -> None:
    """Refuses an identity in two parts: a test on rows that were trained on says nothing.

    Args:
        numbers: Number of each row's identity.
        parts: Part of each row.
    """
    import numpy as np

    pairs = np.unique(np.stack([numbers, parts.astype(np.int64)]), axis=1)
    shared = pairs[0][1:] == pairs[0][:-1]
    if shared.any():
        row = int(np.flatnonzero(numbers == pairs[0][1:][shared][0])[0])
        raise DataError(
            f"Kept row {row} lies in two parts of the split; a row may lie in one only.", field="data.split"
        )
