"""Every format gives the same rows; what cannot be read is said by row."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from components.data import units as units_module
from components.data.read import Roles, read_unit, safe_path
from components.data.source import find_source
from components.data.units import Unit, plan_units, row_name
from tests.builders import DIGITS, png

TEXT = Roles("text", "text", "label")
IMAGE = Roles("image", "image", "label")


def read(path: Path, roles: Roles = TEXT) -> list[dict[str, Any]]:
    units = plan_units(find_source(str(path)))
    return [
        row for unit in units for table in read_unit(Unit.from_json(unit.to_json()), roles) for row in table.to_pylist()
    ]


def test_the_same_rows_come_from_csv_jsonl_and_parquet(tmp_path: Path) -> None:
    rows = [{"text": f'a "quoted"\nline, {n} \u00e9', "label": "xyz"[n % 3], "more": n} for n in range(2500)]
    import csv

    with (tmp_path / "a.csv").open("w", newline="") as handle:
        writer = csv.DictWriter(handle, ["more", "text", "label"])
        writer.writeheader()
        writer.writerows(rows)
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet", row_group_size=700)
    expected = [(n, row["text"], row["label"], None) for n, row in enumerate(rows)]
    for name in ("a.csv", "a.jsonl", "a.parquet"):
        found = [(row["row"], row["feature"], row["label"], row["problem"]) for row in read(tmp_path / name)]
        assert found == expected, name


def test_missing_cells_are_null_not_classes(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('text,label\n"",a\nhello,NaN\nhello," "\n   ,b\n')
    (tmp_path / "a.jsonl").write_text('{"text": null, "label": "a"}\n{"text": "hello", "label": NaN}\n\n')
    assert [(row["feature"], row["label"]) for row in read(tmp_path / "a.csv")] == [
        (None, "a"), ("hello", None), ("hello", None), (None, "b"),
    ]  # fmt: skip
    assert [(row["feature"], row["label"]) for row in read(tmp_path / "a.jsonl")] == [(None, "a"), ("hello", None)]


def test_numbers_and_booleans_are_classes(tmp_path: Path) -> None:
    table = pa.table({"text": ["a", "b", "c"], "label": pa.array([1.0, None, 3.0])})
    pq.write_table(table, tmp_path / "a.parquet")
    assert [(row["label"], row["label_type"]) for row in read(tmp_path / "a.parquet")] == [
        ("1", "number"), (None, "missing"), ("3", "number"),
    ]  # fmt: skip


def test_bad_rows_of_a_csv_are_problems_with_their_line(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"text,label\ngood,x\nonly one\na,b,c\n\xff\xfe,x\nlast,y\n")
    rows = read(tmp_path / "a.csv")
    assert sorted(row["problem"] for row in rows if row["problem"]) == [
        "it is not UTF-8",
        "line 3 has 1 cells instead of 2",
        "line 4 has 3 cells instead of 2",
    ]
    assert [row["feature"] for row in rows if row["feature"]] == ["good", "last"]


def test_bad_rows_of_json_lines_are_problems(tmp_path: Path) -> None:
    bad = [
        "{",
        "[1]",
        '{"text": "a"}',
        '{"text": 3, "label": "x"}',
        '{"text": "a", "label": []}',
        '{"text": "\\ud800", "label": "x"}',
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(bad))
    problems = [row["problem"] for row in read(tmp_path / "a.jsonl")]
    for problem, words in zip(
        problems, ["not JSON", "list", "no `label`", "int", "`label` is a list", "surrogate"], strict=True
    ):
        assert words in problem


def test_a_large_parquet_file_is_divided_and_rows_keep_their_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(units_module, "ROW_GROUP_ROWS", 10)
    table = pa.table({"text": [f"t{n}" for n in range(25)], "label": ["x"] * 25})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=5)
    units = plan_units(find_source(str(tmp_path / "a.parquet")))
    assert [(unit.row_groups, unit.first_row) for unit in units] == [((0, 2), 0), ((2, 4), 10), ((4, 5), 20)]
    assert row_name(units[1], 3) == f"{tmp_path}/a.parquet, row 14"
    assert [row["feature"] for row in read(tmp_path / "a.parquet")] == [f"t{n}" for n in range(25)]


def test_the_digits_are_those_of_scikit_learn(tmp_path: Path) -> None:
    from sklearn.datasets import load_digits

    from components.tasks.image_codec import decode_image

    unit = plan_units(find_source(DIGITS))[0]
    rows = [row for table in read_unit(unit, IMAGE) for row in table.to_pylist()]
    digits = load_digits()
    pixels = np.stack([np.asarray(decode_image(row["feature"])) for row in rows])
    assert (pixels == np.rint(digits.images * 255 / 16)).all()
    assert [row["label"] for row in rows] == [str(label) for label in digits.target]


def test_images_of_a_table_are_bytes_or_paths_below_it(tmp_path: Path) -> None:
    content = png(np.zeros((8, 8), np.uint8))
    (tmp_path / "data" / "sub").mkdir(parents=True)
    (tmp_path / "data" / "sub" / "a.png").write_bytes(content)
    (tmp_path / "secret.png").write_bytes(content)
    (tmp_path / "data" / "a.csv").write_text("image,label\nsub/a.png,x\n../secret.png,x\n/etc/passwd,x\nnone.png,x\n")
    rows = read(tmp_path / "data" / "a.csv", IMAGE)
    assert [row["feature"] for row in rows] == [content, None, None, None]
    assert ["below" in (row["problem"] or "") for row in rows] == [False, True, True, False]
    table = pa.table({"image": [{"bytes": content, "path": "x"}], "label": ["x"]})
    pq.write_table(table, tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet", IMAGE)[0]["feature"] == content


def test_a_link_out_of_the_folder_is_no_safe_path(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "link").symlink_to(tmp_path / "secret")
    assert safe_path("link", str(tmp_path / "in" / "a.csv")) is None
    assert safe_path("a\0b", str(tmp_path / "in" / "a.csv")) is None
    assert safe_path("x/../y.png", str(tmp_path / "in" / "a.csv")) == tmp_path / "in" / "y.png"
