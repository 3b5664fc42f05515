"""Streams encoded batches into the Arrow files of the three splits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from components.artifacts.dataset import SPLITS, split_path

if TYPE_CHECKING:
    import pyarrow as pa

RECORD_BATCH_ROWS = 1024
"""Fixed, so that the bytes do not depend on how the rows arrived."""


class SplitWriter:
    """Cuts what arrives into record batches of a fixed length and writes each as soon as it is full."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        import pyarrow as pa

        path.parent.mkdir(parents=True, exist_ok=True)
        self.file = pa.ipc.new_file(str(path), schema)
        self.waiting = schema.empty_table()
        self.rows = 0

    def write(self, rows: pa.Table) -> None:
        import pyarrow as pa

        self.rows += rows.num_rows
        self.waiting = pa.concat_tables([self.waiting, rows])
        while self.waiting.num_rows >= RECORD_BATCH_ROWS:
            self.flush(RECORD_BATCH_ROWS)

    def flush(self, count: int) -> None:
        # combine_chunks copies, so that no buffer of a larger table is written along.
        batch = self.waiting.slice(0, count).combine_chunks()
        self.file.write_table(batch)
        self.waiting = self.waiting.slice(count)

    def close(self) -> None:
        if self.waiting.num_rows:
            self.flush(self.waiting.num_rows)
        self.file.close()


def write_splits(dataset: Path, batches: Iterator[pa.Table]) -> Iterator[int]:
    """Writes all three files, yielding the rows written so far after each batch."""
    import pyarrow.compute as pc

    with ExitStack() as stack:
        writers: list[SplitWriter] = []
        for table in batches:
            rows = table.drop_columns(["part"])
            if not writers:
                writers = [SplitWriter(split_path(dataset, name), rows.schema) for name in SPLITS]
                for writer in writers:
                    stack.callback(writer.close)
            for part, writer in enumerate(writers):
                writer.write(rows.filter(pc.equal(table.column("part"), part)))
            yield sum(writer.rows for writer in writers)
