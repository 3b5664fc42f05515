"""The `Dataset` artifact: three splits as memory-mapped Arrow files, so that random access needs no memory of its size.

    splits/train.arrow  splits/validation.arrow  splits/test.arrow     Arrow IPC files, uncompressed
        id: string       digest of the feature columns
        label: int64     index into `classes`; absent where texts are written
        raw columns      `text`, `image` (encoded bytes), or `source` and `target`: what the baseline and a reader of
                         predictions want
        encoded columns  what `Preprocessing.encode` made: `pixels` or `input_ids`, of pairs also `labels`
    schema.json          {"task", "classes", "encoded": [column names], "rows": {split: count}}
    preprocess/          the fitted preprocessing, copied into every model
    report.json          the data report (not content)

A split without rows (test share 0) is a file with 0 rows. The test split is opened by `evaluate` alone.

The data of a language model has no rows, but one sequence of tokens a split:

    splits/train.tokens  splits/validation.tokens  splits/test.tokens     little-endian uint16; uint32 for a vocabulary
                         of more than 65,536
    schema.json          {"task", "classes": [], "vocab_size", "dtype", "tokens": {split: n}, "bytes": {split: n}}
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

SplitName = Literal["train", "validation", "test"]
SPLITS: tuple[SplitName, ...] = ("train", "validation", "test")


@dataclass(frozen=True)
class Split:
    """Rows of one split. `table` is memory-mapped: only the rows that are taken are read."""

    table: pa.Table
    encoded_columns: tuple[str, ...]

    def __len__(self) -> int:
        return self.table.num_rows

    @property
    def has_labels(self) -> bool:
        """Whether each row has a class; else it has a target."""
        return "label" in self.table.column_names

    def labels(self) -> np.ndarray:
        """Class indices, int64, shape (rows,)."""
        return self.table.column("label").to_numpy()

    def take(self, indices: Sequence[int] | np.ndarray) -> dict[str, list[Any]]:
        """Encoded values of some rows, by column, in the order of `indices`."""
        rows = self.table.select(list(self.encoded_columns)).take(indices)
        return {name: rows.column(name).to_pylist() for name in self.encoded_columns}

    def column(self, name: str) -> list[Any]:
        """A whole column as Python values."""
        return self.table.column(name).to_pylist()


def split_path(dataset: Path, name: SplitName) -> Path:
    return dataset / "splits" / f"{name}.arrow"


def open_split(dataset: Path, name: SplitName) -> Split:
    """Opens a split of the Dataset artifact whose local folder is `dataset`."""
    import json

    import pyarrow as pa

    schema = json.loads((dataset / "schema.json").read_text())
    table = pa.ipc.open_file(pa.memory_map(str(split_path(dataset, name)))).read_all()
    return Split(table, tuple(schema["encoded"]))


def tokens_path(dataset: Path, name: SplitName) -> Path:
    return dataset / "splits" / f"{name}.tokens"


def open_tokens(dataset: Path, name: SplitName) -> np.ndarray:
    """The tokens of a split, memory-mapped, shape (tokens,), uint16 or uint32."""
    import json

    import numpy as np

    schema = json.loads((dataset / "schema.json").read_text())
    if not schema["tokens"][name]:
        return np.empty(0, schema["dtype"])
    return np.memmap(tokens_path(dataset, name), dtype=schema["dtype"], mode="r")


class TokenWriter:
    """Writes the token files of a Dataset; a context manager.

    Args:
        dataset: Folder of the draft.
        vocab_size: Decides how many bytes a token takes.
    """

    def __init__(self, dataset: Path, vocab_size: int) -> None:
        self.dtype = "<u2" if vocab_size <= 1 << 16 else "<u4"
        self.tokens: dict[str, int] = dict.fromkeys(SPLITS, 0)
        self.bytes: dict[str, int] = dict.fromkeys(SPLITS, 0)
        self.paths = {name: tokens_path(dataset, name) for name in SPLITS}

    def __enter__(self) -> TokenWriter:
        for path in self.paths.values():
            path.parent.mkdir(parents=True, exist_ok=True)
        self.files = {name: path.open("wb") for name, path in self.paths.items()}
        return self

    def __exit__(self, *failure: object) -> None:
        for file in self.files.values():
            file.close()

    def write(self, name: SplitName, tokens: bytes, size_bytes: int) -> None:
        """Appends tokens (uint32, little endian) that stand for `size_bytes` of text."""
        import numpy as np

        values = np.frombuffer(tokens, "<u4")
        self.files[name].write(values.astype(self.dtype).tobytes())
        self.tokens[name] += len(values)
        self.bytes[name] += size_bytes

    def counts(self) -> dict[str, Any]:
        """What the schema says of the files."""
        return {"dtype": self.dtype, "tokens": self.tokens, "bytes": self.bytes}
