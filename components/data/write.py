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
RECORD_BATCH_BYTES = 32 << 20
"""A record batch ends at the row that fills either, so that its bounds do not depend on how the rows arrived."""


class SplitWriter:
    """Cuts what arrives into record batches and writes each as soon as it is full.

    Args:
        path: The file.
        schema: Of the rows.
        payload: The column whose bytes are counted: text or encoded image.
    """

    def __init__(self, path: Path, schema: pa.Schema, payload: str) -> None:
        import pyarrow as pa

        path.parent.mkdir(parents=True, exist_ok=True)
        self.file = pa.ipc.new_file(str(path), schema)
        self.payload = payload
        self.waiting = schema.empty_table()
        self.rows = 0

    def write(self, rows: pa.Table) -> None:
        import pyarrow as pa

        self.rows += rows.num_rows
        self.waiting = pa.concat_tables([self.waiting, rows])
        while (count := full_batch(self.waiting.column(self.payload))) is not None:
            self.flush(count)

    def flush(self, count: int) -> None:
        import numpy as np

        # `take` makes new buffers; a slice would be written with parts of the buffers of the batch it was cut from.
        self.file.write_table(self.waiting.take(np.arange(count)).combine_chunks())
        self.waiting = self.waiting.slice(count)

    def close(self) -> None:
        if self.waiting.num_rows:
            self.flush(self.waiting.num_rows)
        self.file.close()


def full_batch(payload: pa.ChunkedArray) -> int | None:
    """How many of the waiting rows make a full record batch, or None if they are too few."""
    import numpy as np
    import pyarrow.compute as pc

    sizes = np.cumsum(pc.binary_length(payload).to_numpy(), dtype=np.int64)
    count = min(int(np.searchsorted(sizes, RECORD_BATCH_BYTES)) + 1, RECORD_BATCH_ROWS)
    return count if count <= len(sizes) else None


def write_splits(dataset: Path, batches: Iterator[pa.Table], payload: str) -> Iterator[int]:
    """Writes all three files, yielding the rows written so far after each batch."""
    import pyarrow.compute as pc

    with ExitStack() as stack:
        writers: list[SplitWriter] = []
        for table in batches:
            rows = table.drop_columns(["part"])
            if not writers:
                writers = [SplitWriter(split_path(dataset, name), rows.schema, payload) for name in SPLITS]
                for writer in writers:
                    stack.callback(writer.close)
            for part, writer in enumerate(writers):
                writer.write(rows.filter(pc.equal(table.column("part"), part)))
            yield sum(writer.rows for writer in writers)
