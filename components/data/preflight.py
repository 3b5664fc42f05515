"""What can be said about a source before the work begins: files, columns, types; then, as far as time allows, rows."""

from __future__ import annotations

import csv
import io
import itertools
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from components.data.batches import IndexRows
from components.data.clean import clean_rows
from components.data.config import DataConfig
from components.data.corpus import check_length, plan_index
from components.data.index import concat_index, row_namer, unit_items
from components.data.read import Roles, open_file
from components.data.source import Source, find_source
from components.data.split import split_rows
from components.data.units import open_parquet, plan_units
from components.errors import DataError, PenstockError
from components.tasks import get_task
from components.tasks.tokenizers import BUILT, pretrained_vocabulary

if TYPE_CHECKING:
    import pyarrow as pa

CHECK_TIME_S = 6.0
"""Reading stops after this long: `check` answers within ten seconds, however large the source."""
HEADER_BYTES = 1 << 20
TYPED_LINES = 100
"""JSON lines looked at for their columns before the whole file is read."""


def check_source(
    task: str, config: DataConfig, base: Path | None = None, seq_len: int | None = None
) -> list[PenstockError]:
    """What is wrong with the source, as far as it can be seen in a few seconds; an empty list if nothing is.

    Goes through the functions of the stage itself, so the stage finds nothing else. A source too large to read in
    that time has its files, columns and first rows checked only.

    Args:
        seq_len: Of a language model: tokens that each part must hold more of.
    """
    try:
        source = find_source(config.source, base)
        check_headers(source, task, config)
        if config.text.tokenizer not in BUILT:
            pretrained_vocabulary(config.text.tokenizer)
        check_rows(source, task, config, seq_len)
    except PenstockError as error:
        return [error]
    return []


def plan_roles(source: Source, task: str, config: DataConfig) -> Roles:
    """Which columns are read.

    Raises:
        DataError: If the source is of another modality than the task, or has no columns to split by.
    """
    wanted = get_task(task)
    if source.kind in ("images", "digits"):
        if wanted.modality != "image":
            raise DataError(
                f"{config.source} holds images, but the task is {task}; give a table of texts.", field="data.source"
            )
        if config.split.by in ("group", "time"):
            raise DataError(
                f"data.split.by is {config.split.by}, but {config.source} has no columns; use random or position.",
                field="data.split.by",
            )
    if source.kind == "text" and not wanted.packed:
        given, lacking = ("sources", "targets") if wanted.target else ("texts", "labels")
        raise DataError(
            f"{config.source} holds plain text without {lacking}, but the task is {task}; give a table with a column "
            f"of {given} and one of {lacking}.",
            field="data.source",
        )
    key = config.split.column if config.split.by in ("group", "time") and not wanted.packed else None
    label = None if wanted.generative else config.columns.label
    target = getattr(config.columns, wanted.target) if wanted.target else None
    return Roles(wanted.modality, getattr(config.columns, wanted.feature), label, key, target)


def check_headers(source: Source, task: str, config: DataConfig) -> Roles:
    """Compares the columns of every file with what is wanted and with the first file's.

    Raises:
        DataError: Naming the file and the column.
    """
    roles = plan_roles(source, task, config)
    if source.kind in ("images", "digits", "text"):
        return roles
    first: dict[str, str] | None = None
    for file in source.files:
        columns = {"csv": csv_columns, "jsonl": json_columns, "parquet": parquet_columns}[source.kind](file.path)
        check_columns(file.path, columns, roles, task)
        if first is not None:
            check_drift(source.files[0].path, first, file.path, columns, roles)
        first = first or columns
    return roles


def check_columns(path: str, columns: dict[str, str], roles: Roles, task: str) -> None:
    feature, target = get_task(task).feature, get_task(task).target
    for name, field in ((roles.feature, feature), (roles.target, target), (roles.label, "label"), (roles.key, None)):
        if name is not None and name not in columns:
            setting = f"data.columns.{field}" if field else "data.split.column"
            raise DataError(
                f"The column {name!r} is missing from {path} (it has: {', '.join(columns) or 'none'}); set {setting}.",
                field=setting,
            )
    texts = ((roles.feature, feature), (roles.target, target)) if roles.modality == "text" else ()
    for name, field in texts:
        if name is not None and columns[name] not in ("text", "any", "null"):
            raise DataError(
                f"Column {name!r} of {path} holds {columns[name]}, but {task} needs text.",
                field=f"data.columns.{field}",
            )


def check_drift(first_path: str, first: dict[str, str], path: str, columns: dict[str, str], roles: Roles) -> None:
    """Refuses files whose columns, or the types of those that are used, differ."""
    if set(first) != set(columns):
        name = sorted(set(first) ^ set(columns))[0]
        have, lack = (first_path, path) if name in first else (path, first_path)
        raise DataError(
            f"The files differ in their columns: {have} has {name!r}, {lack} has not; make them alike.",
            field="data.source",
        )
    for name in roles.columns:
        if "any" not in (first[name], columns[name]) and first[name] != columns[name]:
            raise DataError(
                f"Column {name!r} holds {first[name]} in {first_path}, but {columns[name]} in {path}; make them alike.",
                field="data.source",
            )


def csv_columns(path: str) -> dict[str, str]:
    """Column names of the header line; all cells are text.

    Raises:
        DataError: If the header is not UTF-8, or a name occurs twice.
    """
    with open_file(path) as handle:
        head = handle.read(HEADER_BYTES)
    try:
        text = head.decode("utf-8-sig") if len(head) < HEADER_BYTES else head.decode("utf-8-sig", "ignore")
    except UnicodeDecodeError:
        text = head.split(b"\n")[0].decode("utf-8-sig", "replace")
    names = next(csv.reader(io.StringIO(text, newline="")), [])
    twice = next((name for name in names if names.count(name) > 1), None)
    if "\ufffd" in "".join(names) or "\0" in text[:1000]:
        raise DataError(f"{path} is not UTF-8; save it as UTF-8.", field="data.source")
    if twice is not None:
        raise DataError(f"{path} has the column {twice!r} twice; rename one.", field="data.source")
    return dict.fromkeys(names, "text")


def json_columns(path: str) -> dict[str, str]:
    """Names in the first objects; types are looked at row by row later."""
    names: dict[str, str] = {}
    with open_file(path) as handle:
        for line in itertools.islice(handle, TYPED_LINES):
            try:
                value = json.loads(line.decode("utf-8-sig"))
            except (ValueError, RecursionError):
                continue
            names |= dict.fromkeys(value, "any") if isinstance(value, dict) else {}
    return names


def parquet_columns(path: str) -> dict[str, str]:
    """Column names and kinds of the footer."""
    with open_parquet(path) as file:
        return {field.name: kind_of(field.type) for field in file.schema_arrow}


def kind_of(data_type: pa.DataType) -> str:
    """A type as users call it: widths of the same kind of value are no drift."""
    from pyarrow import types

    if types.is_dictionary(data_type):
        data_type = data_type.value_type
    tests = {
        "text": lambda t: types.is_string(t) or types.is_large_string(t) or types.is_string_view(t),
        "numbers": lambda t: types.is_integer(t) or types.is_floating(t),
        "bytes": lambda t: types.is_binary(t) or types.is_large_binary(t),
        "booleans": types.is_boolean,
        "null": types.is_null,
    }
    return next((name for name, test in tests.items() if test(data_type)), str(data_type))


def check_rows(source: Source, task: str, config: DataConfig, seq_len: int | None = None) -> None:
    """Indexes rows until the time is up; cleans and splits them if that was all, so that class counts are known.

    Raises:
        DataError: Whatever the stage would raise.
    """
    units = plan_units(source)
    work = IndexRows(task, plan_roles(source, task, config), config.split.seed)
    deadline = time.monotonic() + CHECK_TIME_S
    tables = []
    for table in index_batches(units, work):
        tables.append(table)
        if time.monotonic() > deadline:
            return
    index = concat_index(tables)
    if get_task(task).packed:
        plan = plan_index(index, units, config, row_namer(index, units))
        if seq_len is not None:
            check_length(plan, config.text.tokenizer, seq_len)
        return
    split_rows(index, clean_rows(index, config, row_namer(index, units)), config.split)


def index_batches(units: list, work: IndexRows) -> Iterator:
    return itertools.chain.from_iterable(work(item) for item in unit_items(units))
