"""Record batches have the same bounds however the rows arrive."""

from pathlib import Path

import pyarrow as pa
import pytest

from components.artifacts.dataset import split_path
from components.data import write as write_module
from components.data.write import write_splits


def arrive(folder: Path, rows: pa.Table, sizes: list[int]) -> bytes:
    starts = [sum(sizes[:number]) for number in range(len(sizes))]
    tables = (rows.slice(start, size) for start, size in zip(starts, sizes, strict=True))
    assert list(write_splits(folder, tables, "text"))[-1] == rows.num_rows
    return split_path(folder, "train").read_bytes()


def test_bytes_do_not_depend_on_the_batches_that_arrive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(write_module, "RECORD_BATCH_ROWS", 10)
    monkeypatch.setattr(write_module, "RECORD_BATCH_BYTES", 200)
    texts = ["x" * (70 if n % 7 == 0 else 5) for n in range(100)]
    rows = pa.table({"part": pa.array([0] * 99 + [2], pa.int8()), "id": [str(n) for n in range(100)], "text": texts})
    whole = arrive(tmp_path / "a", rows, [100])
    assert whole == arrive(tmp_path / "b", rows, [1] * 100) == arrive(tmp_path / "c", rows, [3, 50, 47])
    with pa.ipc.open_file(pa.BufferReader(whole)) as file:
        batches = [file.get_batch(number) for number in range(file.num_record_batches)]
    assert sum(batch.num_rows for batch in batches) == 99
    assert max(batch.num_rows for batch in batches) <= 10
    assert max(sum(len(text) for text in batch["text"].to_pylist()[:-1]) for batch in batches) < 200
