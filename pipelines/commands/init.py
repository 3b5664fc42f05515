"""`penstock init FILE`: a starter spec guessed from the data."""

from __future__ import annotations

import argparse
import csv
import json
import os
import re
from pathlib import Path
from typing import Any

from components.errors import DataError, SpecError
from components.tasks import get_task

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp"}
LABEL_NAMES = ("label", "class", "target", "category", "y")
SAMPLE_ROWS = 200


def command(options: argparse.Namespace) -> int:
    source = Path(options.source)
    name = re.sub(r"[^A-Za-z0-9_-]", "-", source.stem if source.is_file() else source.name).lstrip("-_")[:63] or "model"
    output = Path(options.output or f"{name}.yaml")
    if output.exists():
        raise SpecError(f"{output} exists already; name another file with --output.")
    if not source.exists():
        raise DataError(
            f"There is no file or folder {source}; give a .csv, .jsonl or .parquet file, or an image folder."
        )
    relative = os.path.relpath(source.absolute(), output.absolute().parent)
    output.write_text(image_spec(name, relative) if source.is_dir() else table_spec(name, relative, source))
    if options.json:
        print(json.dumps({"status": "done", "spec": str(output)}))
    else:
        print(f"wrote {output}; look through it, then: penstock check {output} && penstock run {output}")
    return 0


def table_spec(name: str, relative: str, source: Path) -> str:
    """The spec of a table: pairs of texts where the columns are called so, else texts with labels."""
    rows = read_sample(source)
    if {"source", "target"} <= set(rows[0]):
        return pairs_spec(name, relative)
    return text_spec(name, relative, guess_columns(rows, source))


def read_sample(source: Path) -> list[dict[str, Any]]:
    """The first rows of a table, as mappings.

    Raises:
        DataError: If it is of no known kind, cannot be read, or is empty.
    """
    try:
        rows = parse_sample(source)
    except (ValueError, csv.Error) as error:
        raise DataError(f"{source} cannot be read as {source.suffix} ({str(error).splitlines()[0]}).") from error
    if not rows or not all(isinstance(row, dict) for row in rows):
        raise DataError(f"{source} has no rows with columns; give a file with data in it.")
    return rows


def parse_sample(source: Path) -> list[dict[str, Any]]:
    """See `read_sample`; what the parsers raise comes up as a ValueError."""
    if source.suffix == ".csv":
        with source.open(newline="") as handle:
            return [row for row, _ in zip(csv.DictReader(handle), range(SAMPLE_ROWS), strict=False)]
    if source.suffix == ".jsonl":
        with source.open() as handle:
            return [json.loads(line) for line, _ in zip(handle, range(SAMPLE_ROWS), strict=False) if line.strip()]
    if source.suffix == ".parquet":
        import pyarrow.parquet

        batches = pyarrow.parquet.ParquetFile(source).iter_batches(batch_size=SAMPLE_ROWS)
        return next((batch.to_pylist() for batch in batches), [])
    raise DataError(f"{source} is of no kind that is read; give .csv, .jsonl, .parquet, or a folder of images.")


def guess_columns(rows: list[dict[str, Any]], source: Path) -> tuple[str, str]:
    """The text and the label column: the longest texts, and a known name or the fewest distinct values.

    Raises:
        DataError: If no two columns fit.
    """
    names = [name for name in rows[0] if name is not None]
    if len(names) < 2:
        raise DataError(f"{source} has the columns {', '.join(names)}; a text and a label column are needed.")
    lengths = {name: sum(len(str(row.get(name) or "")) for row in rows) for name in names}
    text = max(names, key=lambda name: lengths[name])
    others = [name for name in names if name != text]
    named = [name for name in others if name.lower() in LABEL_NAMES]
    label = named[0] if named else min(others, key=lambda name: len({str(row.get(name)) for row in rows}))
    return text, label


def text_spec(name: str, source: str, columns: tuple[str, str]) -> str:
    return f"""version: 1
name: {name}
task: text-classification
data:
  source: {json.dumps(source)}
  columns: {{text: {json.dumps(columns[0])}, label: {json.dumps(columns[1])}}}
  split: {{validation: 0.1, test: 0.15}}
model: {{architecture: text-cnn}}          # {" ".join(get_task("text-classification").architectures)}
train: {{epochs: 6, global_batch_size: 64, learning_rate: 1e-3}}
{COMMON}"""


def pairs_spec(name: str, source: str) -> str:
    return f"""version: 1
name: {name}
task: text2text-generation
data:
  source: {json.dumps(source)}
  columns: {{source: source, target: target}}
  text: {{max_length: 64, max_target_length: 64}}         # tokens; longer texts are cut
  split: {{validation: 0.1, test: 0.1}}
model: {{architecture: t5, hidden_size: 128, num_hidden_layers: 2, num_attention_heads: 4}}
train: {{epochs: 20, global_batch_size: 64, learning_rate: 1e-3}}
{TUNE}compress: false                        # not available for models that write texts in this version
register: false
deploy: false
"""


def image_spec(name: str, source: str) -> str:
    return f"""version: 1
name: {name}
task: image-classification
data:
  source: {json.dumps(source)}               # one folder of images a class
  split: {{validation: 0.1, test: 0.15}}
model: {{architecture: cnn}}                # {" ".join(get_task("image-classification").architectures)}
train: {{epochs: 10, global_batch_size: 64, learning_rate: 1e-3}}
{COMMON}"""


TUNE = """# tune:                                # uncomment to search hyperparameters first
#   search: bayesian                   # grid | random | bayesian
#   trials: 8
#   scheduler: asha
#   space: {train.learning_rate: {log_uniform: [1e-4, 3e-3]}}
"""
COMMON = f"""{TUNE}compress:
  candidates: [int8-dynamic, int8-static]
  accept: {{max_drop: 0.02, confidence: 0.95}}
deploy: {{port: 8000}}                   # false leaves a stage out
"""
