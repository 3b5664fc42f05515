"""About how many samples a file holds, from its size and its first lines."""

from __future__ import annotations

from pathlib import Path

HEAD_BYTES = 1 << 20
BYTES_PER_TOKEN = 4
"""Of English text under a trained BPE vocabulary; a byte tokenizer makes four times as many."""


def estimate_samples(path: Path, tokens: int | None) -> int | None:
    """Rows of a .csv, .jsonl or .parquet file, or sequences of `tokens` tokens in a text; None for all else.

    Args:
        path: A local file; anything else gives None.
        tokens: Of a sample of a language model; None where a row is a sample.
    """
    if not path.is_file():
        return None
    if tokens is not None:
        return path.stat().st_size // (BYTES_PER_TOKEN * tokens)
    if path.suffix == ".parquet":
        import pyarrow.parquet

        return pyarrow.parquet.read_metadata(path).num_rows
    if path.suffix not in (".csv", ".jsonl"):
        return None
    with path.open("rb") as handle:
        head = handle.read(HEAD_BYTES)
    return path.stat().st_size * max(1, head.count(b"\n")) // max(1, len(head))
