"""Where rows go: a function of (seed, identity), stratified, nothing shared between parts."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from components.data.clean import clean_rows
from components.data.config import DataConfig, SplitConfig
from components.data.split import TEST, TRAIN, VALIDATION, check_overlap, part_sizes, split_rows
from components.errors import DataError
from tests.components.data.test_clean import make_index

Rows = Sequence[tuple[str, str]]


def split(rows: Rows, keys: list[str] | None = None, clean: Sequence[str] = ("deduplicate",), **settings: Any) -> dict:
    """The part of each feature, by feature."""
    config = DataConfig(source="x.csv", split=SplitConfig(**settings), clean=clean)
    index = make_index(list(rows), keys, config.split.seed)
    cleaned = clean_rows(index, config, str)
    parts = split_rows(index, cleaned, config.split)
    return {rows[row][0]: part for row, part in zip(cleaned.kept, parts.tolist(), strict=True)}


ROWS = [(f"text {n}", "abc"[n % 3]) for n in range(90)]


def test_shares_hold_in_each_class() -> None:
    found = split(ROWS, validation=0.1, test=0.2)
    for label in "abc":
        parts = [found[feature] for feature, name in ROWS if name == label]
        assert [parts.count(part) for part in (TRAIN, VALIDATION, TEST)] == [21, 3, 6]


def test_the_order_of_the_file_does_not_matter_and_the_seed_does() -> None:
    shuffled = [ROWS[row] for row in np.random.default_rng(0).permutation(len(ROWS))]
    assert split(ROWS) == split(shuffled)
    assert split(ROWS) != split(ROWS, seed=1)


def test_a_class_of_three_has_one_row_in_each_part() -> None:
    found = split([*ROWS, ("x", "rare"), ("y", "rare"), ("z", "rare")])
    assert sorted(found[feature] for feature in "xyz") == [TRAIN, VALIDATION, TEST]


@pytest.mark.parametrize("count", range(3, 40))
def test_each_part_gets_a_row_and_train_is_never_empty(count: int) -> None:
    for validation, test in ((0.1, 0.1), (0.45, 0.5), (0.9, 0.05), (0.01, 0.98)):
        sizes = part_sizes(count, SplitConfig(validation=validation, test=test))
        assert min(*sizes, count - sum(sizes)) >= 1


def test_without_a_test_share_the_test_part_is_empty() -> None:
    assert set(split(ROWS, test=0).values()) == {TRAIN, VALIDATION}


def test_by_position_the_file_is_cut_in_order() -> None:
    found = split(ROWS, by="position", validation=0.2, test=0.1)
    assert [found[feature] for feature, _ in ROWS] == [TRAIN] * 63 + [VALIDATION] * 18 + [TEST] * 9


def test_by_time_the_newest_rows_are_the_test() -> None:
    numbers = [str(100 - n) for n in range(90)]
    found = split(ROWS, numbers, by="time", column="year", validation=0.1, test=0.1)
    assert {found[feature] for feature, _ in ROWS[:9]} == {TEST}
    assert {found[feature] for feature, _ in ROWS[18:]} == {TRAIN}


def test_by_group_no_group_is_divided() -> None:
    keys = [f"person {n // 3 % 10}" for n in range(90)]
    found = split(ROWS, keys, by="group", column="person")
    by_group = {
        key: {found[feature] for (feature, _), own in zip(ROWS, keys, strict=True) if own == key} for key in keys
    }
    assert all(len(parts) == 1 for parts in by_group.values())
    assert set(found.values()) == {TRAIN, VALIDATION, TEST}


def test_two_groups_are_too_few() -> None:
    with pytest.raises(DataError, match="2 groups"):
        split(ROWS, ["x", "y"] * 45, by="group", column="person")


def test_a_class_that_train_would_lack_is_refused() -> None:
    late = [(f"text {n}", "a" if n < 80 else "b") for n in range(90)]
    with pytest.raises(DataError, match="'b' in train"):
        split(late, by="position", validation=0.2, test=0.1)


def test_kept_duplicates_share_a_part() -> None:
    index_rows = [*ROWS, *ROWS]
    config = DataConfig(source="x.csv", clean=())
    index = make_index(index_rows)
    parts = split_rows(index, clean_rows(index, config, str), config.split)
    assert parts[:90].tolist() == parts[90:].tolist()


def test_an_identity_in_two_parts_is_refused() -> None:
    check_overlap(np.array([0, 1, 1]), np.array([0, 1, 1]))
    with pytest.raises(DataError, match="two parts"):
        check_overlap(np.array([0, 1, 1]), np.array([0, 1, 2]))
