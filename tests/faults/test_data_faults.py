"""Row G2: whatever is wrong with the data is stopped in preflight, with the row or the column named.

Each fault is put before `check_source`, which `penstock check` and every run ask first, and before the stage itself.
"""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from components.artifacts.dataset import SPLITS, open_split
from components.data import stage as data_stage
from components.data.config import DataConfig
from components.data.split import check_overlap
from components.data.stage import check_source
from components.errors import DataError
from tests.builders import build_dataset

pytestmark = pytest.mark.faults
ROWS = [{"text": f"some words {n}", "label": "ab"[n % 2]} for n in range(60)]
TEXT = "text-classification"


def write_csv(path: Path, rows: list[dict[str, Any]], columns: tuple[str, ...] = ("text", "label")) -> Path:
    lines = [",".join(str(row[name]) for name in columns) for row in rows]
    path.write_text("\n".join([",".join(columns), *lines]) + "\n")
    return path


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


def assert_stopped(tmp_path: Path, source: Path | str, *words: str, **data: Any) -> None:
    """Preflight and the stage refuse, saying `words`, exit code 2, and nothing is written."""
    (error,) = check_source(TEXT, DataConfig(source=str(source), **data))
    with pytest.raises(DataError) as raised:
        build_dataset(tmp_path, str(source), **data)
    for message in (error.message, raised.value.message):
        assert all(word in message for word in words), message
        assert "\n" not in message
    assert error.exit_code == 2
    assert not (tmp_path / "dataset").exists()


def test_G2_a_missing_source_is_named(tmp_path: Path) -> None:
    assert_stopped(tmp_path, tmp_path / "none.csv", "none.csv", "no such file")


@pytest.mark.parametrize("content", ["", "text,label\n"])
def test_G2_an_empty_source_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "a.csv").write_text(content)
    assert_stopped(tmp_path, tmp_path / "a.csv", "a.csv", "no rows" if content else "empty")


def test_G2_one_row_is_too_few(tmp_path: Path) -> None:
    assert_stopped(tmp_path, write_csv(tmp_path / "a.csv", ROWS[:1]), "'a' (1)")


def test_G2_a_label_seen_once_is_named(tmp_path: Path) -> None:
    rows = [*ROWS, {"text": "alone", "label": "sports"}]
    assert_stopped(tmp_path, write_csv(tmp_path / "a.csv", rows), "'sports' (1)", "data.rare")


def test_G2_a_missing_column_is_named_with_those_there_are(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "a.csv", [{"text": "a", "y": 1}], ("text", "y"))
    assert_stopped(tmp_path, path, "'label'", "text, y")


def test_G2_a_source_that_changes_under_foot_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_csv(tmp_path / "a.csv", ROWS)
    fit = data_stage.fit_preprocessing

    def change_then_fit(*arguments: Any) -> Any:
        write_csv(path, [{**row, "label": "b"} for row in ROWS[:30]] + ROWS[30:])
        return fit(*arguments)

    monkeypatch.setattr(data_stage, "fit_preprocessing", change_then_fit)
    with pytest.raises(DataError, match="changed while the run"):
        build_dataset(tmp_path, str(path), text={"vocab_size": 40})
    assert not (tmp_path / "dataset").exists()


@pytest.mark.parametrize("change", [lambda rows: rows[:-5], lambda rows: [*rows, *rows[:5]]])
def test_G2_a_source_that_shrinks_or_grows_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[list], list]
) -> None:
    path = write_csv(tmp_path / "a.csv", ROWS)
    write = data_stage.write_rows

    def change_then_write(*arguments: Any) -> None:
        write_csv(path, change(ROWS))
        write(*arguments)

    monkeypatch.setattr(data_stage, "write_rows", change_then_write)
    with pytest.raises(DataError, match=r"a\.csv, row \d+ changed"):
        build_dataset(tmp_path, str(path), text={"vocab_size": 40})


def test_G2_duplicates_are_merged_before_they_can_leak(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "a.csv", ROWS * 5)
    dataset = build_dataset(tmp_path, str(path), text={"vocab_size": 40})
    assert dataset.read_json("report.json")["dropped"]["duplicates"] == 240
    ids = [row_id for name in SPLITS for row_id in open_split(dataset.path, name).column("id")]
    assert len(ids) == len(set(ids)) == 60


def test_G2_a_source_of_one_row_over_and_over_is_refused(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "a.csv", [ROWS[0], *[ROWS[1]] * 50])
    assert_stopped(tmp_path, path, "'a' (1)", "'b' (1)")


def test_G2_schema_drift_within_a_file_names_row_and_column(tmp_path: Path) -> None:
    rows = [*ROWS[:40], {"text": "odd", "label": 3}, *ROWS[40:]]
    assert_stopped(tmp_path, write_jsonl(tmp_path / "a.jsonl", rows), "row 41", "'label'", "number")
    rows = [*ROWS[:40], {"text": 7, "label": "a"}, *ROWS[40:]]
    assert_stopped(tmp_path, write_jsonl(tmp_path / "b.jsonl", rows), "row 41", "`text`")


def test_G2_schema_drift_between_files_names_file_and_column(tmp_path: Path) -> None:
    write_csv(tmp_path / "a.csv", ROWS)
    write_csv(tmp_path / "b.csv", [{**row, "date": 1} for row in ROWS], ("text", "label", "date"))
    assert_stopped(tmp_path, tmp_path / "*.csv", "'date'", "a.csv", "b.csv")
    pq.write_table(pa.table({"text": ["a"], "label": ["x"]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"text": ["a"], "label": [1]}), tmp_path / "b.parquet")
    assert_stopped(tmp_path, tmp_path / "*.parquet", "'label'", "numbers", "b.parquet")


def test_G2_a_truncated_parquet_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.Table.from_pylist(ROWS), path)
    whole = path.read_bytes()
    for size in (3, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        assert_stopped(tmp_path, path, "a.parquet", "not a whole Parquet")


def test_G2_a_parquet_file_torn_in_its_middle_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.Table.from_pylist(ROWS), path)
    whole = bytearray(path.read_bytes())
    whole[4:200] = bytes(196)
    path.write_bytes(whole)
    assert_stopped(tmp_path, path, "a.parquet")


def test_G2_nan_labels_name_row_and_column(tmp_path: Path) -> None:
    rows = [{**row, "label": float("nan") if n % 4 == 3 else row["label"]} for n, row in enumerate(ROWS)]
    assert_stopped(tmp_path, write_jsonl(tmp_path / "a.jsonl", rows), "row 4", "label", "15 of 60")
    assert_stopped(tmp_path, write_csv(tmp_path / "a.csv", rows), "row 4", "label", "15 of 60")


def test_G2_an_overlap_of_splits_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="row 2 lies in two parts"):
        check_overlap(np.array([4, 5, 6, 7, 6]), np.array([0, 0, 0, 1, 2]))
    path = write_csv(tmp_path / "a.csv", ROWS * 2)
    dataset = build_dataset(tmp_path, str(path), clean=[], text={"vocab_size": 40})
    ids = [set(open_split(dataset.path, name).column("id")) for name in SPLITS]
    assert not (ids[0] & ids[1] | ids[0] & ids[2] | ids[1] & ids[2])


def test_G2_preflight_answers_in_ten_seconds_however_large_the_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reading stops at its deadline: shown by a clock that has passed it after the first batch."""
    path = write_csv(tmp_path / "a.csv", [{"text": f"words {n}", "label": "ab"[n < 3000]} for n in range(6000)])
    later = iter([0.0, *[1e9] * 100])
    monkeypatch.setattr(time, "monotonic", lambda: next(later))
    assert check_source(TEXT, DataConfig(source=str(path))) == []
