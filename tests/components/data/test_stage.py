"""The data stage from source to artifact."""

import json
from pathlib import Path

import numpy as np
import pytest

from components.artifacts.dataset import SPLITS, open_split
from components.context import read_lines
from components.data import stage as data_stage
from components.data.config import DataConfig
from components.data.stage import check_source
from components.errors import DataError
from tests.builders import DIGITS, build_dataset, png


def write_folder(folder: Path, per_class: int = 12) -> None:
    generator = np.random.default_rng(0)
    for label, suffix in (("cat", "png"), ("dog", "bmp"), ("owl", "webp")):
        (folder / label).mkdir(parents=True)
        for number in range(per_class):
            from PIL import Image

            pixels = generator.integers(0, 256, (10, 14, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / label / f"{number}.{suffix}")


def test_digits_become_a_dataset_that_is_the_same_each_time(tmp_path: Path) -> None:
    first, second = (build_dataset(tmp_path / name, split={"validation": 0.1, "test": 0.25}) for name in "ab")
    assert first.digest == second.digest
    assert first.manifest.metadata == {
        "rows": {"train": 1168, "validation": 179, "test": 450},
        "classes": 10,
        "dropped": 0,
    }
    assert first.read_json("schema.json") == {
        "task": "image-classification",
        "classes": [str(digit) for digit in range(10)],
        "encoded": ["pixels"],
        "rows": first.manifest.metadata["rows"],
    }
    assert not first.manifest.files["report.json"].content


def test_splits_share_no_row_and_hold_what_the_schema_says(tmp_path: Path) -> None:
    dataset = build_dataset(tmp_path, rows=200)
    splits = {name: open_split(dataset.path, name) for name in SPLITS}
    ids = [row_id for split in splits.values() for row_id in split.column("id")]
    assert len(ids) == len(set(ids)) == 200
    assert {name: len(split) for name, split in splits.items()} == dataset.manifest.metadata["rows"]
    assert all(set(split.labels()) == set(range(10)) for split in splits.values())


def test_rows_are_the_same_in_another_order_of_the_source(tmp_path: Path) -> None:
    rows = [f"text {n},{'ab'[n % 2]}" for n in range(60)]
    members = []
    for name, lines in (("one", rows), ("two", rows[::-1])):
        (tmp_path / f"{name}.csv").write_text("\n".join(["text,label", *lines]))
        dataset = build_dataset(tmp_path / name, str(tmp_path / f"{name}.csv"), text={"vocab_size": 40})
        members.append({split: sorted(open_split(dataset.path, split).column("text")) for split in SPLITS})
        members[-1]["tokenizer"] = [(dataset.path / "preprocess" / "tokenizer.json").read_text()]
    assert members[0] == members[1]


def test_an_image_folder_with_a_torn_image_drops_and_reports_it(tmp_path: Path) -> None:
    write_folder(tmp_path / "pets")
    torn = tmp_path / "pets" / "dog" / "3.bmp"
    torn.write_bytes(torn.read_bytes()[:40])
    dataset = build_dataset(tmp_path, str(tmp_path / "pets"), task="image-classification", max_corrupt=0.05)
    report = dataset.read_json("report.json")
    assert report["rows"]["kept"] == 35
    assert report["dropped"]["corrupt_rows"][0]["row"] == str(torn)
    assert report["preprocessing"] == {"image_size": 12, "channels": 3}
    assert report["measures"]["width"]["median"] == 14
    events = read_lines(tmp_path / "run" / "events.jsonl")
    assert any(event["kind"] == "warning" and "1 corrupt" in event["text"] for event in events)
    with pytest.raises(DataError, match=r"3\.bmp"):
        build_dataset(tmp_path, str(tmp_path / "pets"), task="image-classification")


def test_the_report_counts_what_was_dropped_and_why(tmp_path: Path) -> None:
    lines = [f"text number {n},{'ab'[n % 2]}" for n in range(40)]
    lines += ["text number 0,a", "text number 1,a", ",a", "alone,c"]
    (tmp_path / "news.csv").write_text("\n".join(["text,label", *lines]))
    dataset = build_dataset(tmp_path, str(tmp_path / "news.csv"), rare="drop", text={"vocab_size": 60})
    report = dataset.read_json("report.json")
    counts = {
        name: report["dropped"][name] for name in ("corrupt", "missing", "duplicates", "conflicting_labels", "rare")
    }
    assert counts == {"corrupt": 0, "missing": 1, "duplicates": 1, "conflicting_labels": 2, "rare": 1}
    assert report["dropped"]["rare_classes"] == {"c": 1}
    assert report["rows"] == {"read": 44, "kept": 39, "train": 31, "validation": 4, "test": 4}
    assert dataset.manifest.metadata["dropped"] == 5


def test_an_empty_test_split_is_a_file_without_rows(tmp_path: Path) -> None:
    dataset = build_dataset(tmp_path, rows=100, split={"test": 0})
    assert len(open_split(dataset.path, "test")) == 0
    assert len(open_split(dataset.path, "train")) == 90


def test_preprocessing_is_fitted_on_train_alone(tmp_path: Path) -> None:
    lines = [f"common words {n},{'ab'[n % 2]}" for n in range(40)] + ["zzzz zzzz zzzz zzzz,a"] * 1
    (tmp_path / "news.csv").write_text("\n".join(["text,label", *lines]))
    dataset = build_dataset(
        tmp_path, str(tmp_path / "news.csv"), split={"by": "position"}, text={"vocab_size": 60}
    )  # the last row is a test row
    vocabulary = json.loads((dataset.path / "preprocess" / "tokenizer.json").read_text())["model"]["vocab"]
    assert "z" not in vocabulary
    assert "c" in vocabulary


def test_a_failed_stage_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(data_stage, "write_splits", fail)
    with pytest.raises(OSError, match="No space"):
        build_dataset(tmp_path, rows=100)
    assert not (tmp_path / "dataset").exists()
    assert not list(tmp_path.glob(".dataset*"))
    assert not list((tmp_path / "work" / "data").iterdir())


def test_the_same_bytes_come_from_ray_data(tmp_path: Path, ray_session: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from components.context import Context
    from components.data import drivers
    from components.data.stage import StageConfig, run
    from tests.builders import make_context

    write_folder(tmp_path / "pets", per_class=150)
    monkeypatch.setattr(drivers, "SMALL_BYTES", 0)
    config = StageConfig.model_validate({"task": "image-classification", "data": {"source": str(tmp_path / "pets")}})
    assert drivers.choose_driver(make_context(tmp_path, debug=False), 1) is drivers.run_on_ray

    def build(name: str, debug: bool) -> str:
        context: Context = make_context(tmp_path / name, debug=debug)
        return run(config, {}, str(tmp_path / name / "dataset"), context).digest

    assert build("ray", debug=False) == build("here", debug=True)


def test_check_finds_nothing_wrong_with_the_digits() -> None:
    assert check_source("image-classification", DataConfig(source=DIGITS)) == []
    (error,) = check_source("text-classification", DataConfig(source=DIGITS))
    assert "holds images" in error.message


def test_the_news_split_evenly(tmp_path: Path, shared_data: Path) -> None:
    dataset = build_dataset(tmp_path, str(shared_data / "ag_news.csv"))
    assert dataset.manifest.metadata["rows"] == {"train": 6080, "validation": 760, "test": 760}


def test_encoded_bytes_are_kept_beside_the_pixels(tmp_path: Path) -> None:
    dataset = build_dataset(tmp_path, rows=100)
    split = open_split(dataset.path, "train")
    pixels = np.frombuffer(split.take([0])["pixels"][0], np.uint8).reshape(8, 8)
    assert split.column("image")[0] == png(pixels)


def test_a_source_other_than_the_run_began_with_is_refused(tmp_path: Path) -> None:
    from components.artifacts import Ref
    from components.data.stage import StageConfig, run
    from tests.builders import make_context

    config = StageConfig.model_validate({"task": "image-classification", "data": {"source": DIGITS}})
    with pytest.raises(DataError, match="changed"):
        run(config, {"source": Ref(DIGITS, "0" * 64)}, str(tmp_path / "dataset"), make_context(tmp_path, "data"))
