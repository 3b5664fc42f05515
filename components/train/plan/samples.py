"""About how many samples a file holds, from its size and its first lines."""

from __future__ import annotations

from pathlib import Path

HEAD_BYTES = 1 << 20


def estimate_samples(path: Path, sample_bytes: int | None) -> int | None:
    """Rows of a .csv, .jsonl or .parquet file, or samples of `sample_bytes` bytes in a text; None for all else.

    Args:
        path: A local file; anything else gives None.
        sample_bytes: Of a language model's sample; None where a row is a sample.
    """
    if not path.is_file():
        return None
    if sample_bytes is not None:
        return path.stat().st_size // sample_bytes
    if path.suffix == ".parquet":
        import pyarrow.parquet

        return pyarrow.parquet.read_metadata(path).num_rows
    if path.suffix not in (".csv", ".jsonl"):
        return None
    with path.open("rb") as handle:
        head = handle.read(HEAD_BYTES)
    return path.stat().st_size * max(1, head.count(b"\n")) // max(1, len(head))
