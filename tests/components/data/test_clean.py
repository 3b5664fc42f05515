"""Decisions about rows, on an index made by hand."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from components.data.batches import feature_digest, split_order
from components.data.clean import Cleaned, clean_rows
from components.data.config import DataConfig
from components.errors import DataError


def make_index(rows: list[tuple[str | None, str | None]], keys: list[str] | None = None, seed: int = 0) -> pa.Table:
    """An index of (feature, label) rows; the feature "bad" is corrupt."""
    ids = [feature_digest(feature) if feature is not None else None for feature, _ in rows]
    return pa.table(
        {
            "unit": pa.array([0] * len(rows), pa.int32()),
            "row": pa.array(range(len(rows)), pa.int64()),
            "id": pa.array(ids, pa.binary(32)),
            "order": pa.array([split_order(seed, row_id) for row_id in ids], pa.uint64()),
            "label": pa.array([label for _, label in rows], pa.string()),
            "label_type": pa.array(["text" if label is not None else "missing" for _, label in rows]),
            "key": pa.array(keys or [None] * len(rows), pa.string()),
            "problem": pa.array(["it is bad" if feature == "bad" else None for feature, _ in rows], pa.string()),
        }
    )


def clean(rows: list[tuple[str | None, str | None]], **data: Any) -> Cleaned:
    return clean_rows(make_index(rows), DataConfig(source="x.csv", **data), lambda row: f"row {row + 1}")


GOOD: list[tuple[str | None, str | None]] = [(f"text {n}", "ab"[n % 2]) for n in range(10)]


def test_sound_rows_are_all_kept() -> None:
    cleaned = clean(GOOD)
    assert cleaned.classes == ("a", "b")
    assert cleaned.labels.tolist() == [0, 1] * 5
    assert set(cleaned.dropped.values()) == {0}


def test_of_equal_rows_the_first_stays_and_of_conflicting_ones_none() -> None:
    cleaned = clean([*GOOD, GOOD[0], GOOD[0], ("text 3", "a")])
    assert cleaned.kept.tolist() == [0, 1, 2, 4, 5, 6, 7, 8, 9]
    assert (cleaned.dropped["duplicates"], cleaned.dropped["conflicting_labels"]) == (2, 2)
    assert cleaned.conflicts == ["row 4", "row 13"]


def test_duplicates_stay_where_the_step_is_left_out() -> None:
    assert len(clean([*GOOD, GOOD[0]], clean=["drop-missing"]).kept) == 11


def test_empty_features_are_dropped_or_refused() -> None:
    assert clean([*GOOD, (None, "a")]).dropped["missing"] == 1
    with pytest.raises(DataError, match=r"row 11.*drop-missing"):
        clean([*GOOD, (None, "a")], clean=["deduplicate"])


def test_corrupt_rows_are_named_up_to_the_share_and_refused_beyond() -> None:
    rows = [*GOOD, ("bad", "a"), ("fine", None)]
    cleaned = clean(rows, max_corrupt=0.2)
    assert cleaned.dropped["corrupt"] == 2
    assert cleaned.corrupt == [
        {"row": "row 11", "reason": "it is bad"},
        {"row": "row 12", "reason": "its label is missing (label)"},
    ]
    with pytest.raises(DataError, match=r"2 of 12 rows.*0.16.*row 11: it is bad"):
        clean(rows, max_corrupt=0.16)


def test_a_rare_class_is_refused_by_name_or_dropped() -> None:
    rows = [*GOOD, ("rare", "c")]
    with pytest.raises(DataError, match=r"'c' \(1\)"):
        clean(rows)
    cleaned = clean([("early", "A"), *rows], rare="drop")
    assert (cleaned.classes, cleaned.dropped["rare"]) == (("a", "b"), 2)
    assert cleaned.labels.tolist() == [0, 1] * 5


def test_one_class_alone_is_refused() -> None:
    with pytest.raises(DataError, match="at least two"):
        clean([(f"text {n}", "a") for n in range(9)])


def test_whole_numbers_are_ordered_by_value() -> None:
    assert clean([(f"text {n}", str((n % 3) * 5)) for n in range(12)]).classes == ("0", "5", "10")


def test_many_rows_merge_as_a_dictionary_would() -> None:
    generator = np.random.default_rng(0)
    rows = [(f"t{generator.integers(300)}", "ab"[int(generator.integers(20) == 0)]) for _ in range(900)]
    cleaned = clean(rows, rare="drop")
    labels: dict[str, set[str]] = {}
    for feature, label in rows:
        labels.setdefault(feature, set()).add(label)
    expected = {feature for feature, found in labels.items() if len(found) == 1}
    assert [rows[row][0] for row in cleaned.kept] == [f for f in dict.fromkeys(r[0] for r in rows) if f in expected]
