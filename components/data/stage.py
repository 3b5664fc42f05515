"""The `data` stage: a source becomes a Dataset artifact. See README.md for the passes over the source."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.artifacts import Artifact, Draft, Ref, write_artifact
from components.artifacts.dataset import SPLITS, open_split
from components.config import Config
from components.context import Context
from components.data.batches import DROPPED, EncodeRows, IndexRows, SelectRows
from components.data.clean import Cleaned, clean_rows
from components.data.config import DataConfig
from components.data.corpus import describe_corpus, plan_corpus, tell_corpus, write_corpus
from components.data.digest import digest_inputs, source_digest
from components.data.drivers import Driver, choose_driver
from components.data.index import concat_index, parts_by_unit, row_namer, unit_items
from components.data.preflight import check_headers, check_source
from components.data.read import Roles
from components.data.report import count_rows, make_report
from components.data.source import Source, find_source
from components.data.split import TRAIN, split_rows
from components.data.units import Unit, plan_units
from components.data.write import write_splits
from components.errors import DataError
from components.tasks import Preprocessing, get_task

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

__all__ = ["StageConfig", "check_source", "digest_cache", "run", "source_digest"]

FIT_ROWS = {"text": 100_000, "image": 10_000}
"""Training rows the preprocessing is fitted on: of more, those first in the shuffle, so a random sample."""
PROGRESS_S = 1.0


class StageConfig(Config):
    """What the stage reads of the spec."""

    task: str
    data: DataConfig


@dataclass(frozen=True)
class Plan:
    """All decisions about the rows, before any payload is encoded."""

    units: list[Unit]
    roles: Roles
    index: pa.Table
    cleaned: Cleaned
    parts: np.ndarray


@dataclass(frozen=True)
class Reading:
    """A source that was found, its digest at that moment, and how it is read."""

    source: Source
    digest: str
    roles: Roles
    driver: Driver

    @property
    def facts(self) -> dict[str, Any]:
        """What the report says of it."""
        source = self.source
        return {"uri": source.uri, "kind": source.kind, "files": len(source.files), "digest": self.digest}


def digest_cache(home: Path) -> Path:
    """Where the digests of source files are kept between runs."""
    return home / "cache" / "source-digests.json"


def run(config: StageConfig, inputs: Mapping[str, Ref], output: str, context: Context) -> Artifact:
    """Reads, cleans, splits and encodes the source.

    Args:
        config: What is read and how.
        inputs: None, or `source`: the source and the digest it had when the run began.
        output: URI of the artifact.
        context: Whose run this is.

    Raises:
        DataError: If the source is missing, empty, torn, changes while it is read, or is not what the spec says.
    """
    reading = open_reading(config, inputs, context)
    write = write_tokens if get_task(config.task).packed else write_splits_of_rows
    return write(config, reading, inputs, output, context)


def open_reading(config: StageConfig, inputs: Mapping[str, Ref], context: Context) -> Reading:
    """Finds the source and looks at its headers; no row is read yet."""
    source = find_source(config.data.source)
    digest = digest_inputs(source, config.data, digest_cache(context.home))
    refuse_change(config.data.source, digest, inputs)
    roles = check_headers(source, config.task, config.data)
    driver = choose_driver(context, sum(file.size_bytes for file in source.files))
    return Reading(source, digest, roles, driver)


def write_splits_of_rows(
    config: StageConfig, reading: Reading, inputs: Mapping[str, Ref], output: str, context: Context
) -> Artifact:
    """Rows with labels, encoded, in three splits."""
    plan = make_plan(config, reading.source, reading.roles, reading.driver)
    with write_artifact(output, "dataset", inputs, context) as draft:
        preprocessing = fit_preprocessing(config, plan, reading.driver, context)
        write_rows(draft.path, config, plan, preprocessing, reading.driver, context)
        check_unchanged(config, reading.digest, context)
        describe(draft, config, plan, preprocessing, reading.facts)
    assert draft.artifact is not None
    report_events(draft.metadata, plan, context)
    return draft.artifact


def write_tokens(
    config: StageConfig, reading: Reading, inputs: Mapping[str, Ref], output: str, context: Context
) -> Artifact:
    """The texts of a language model as one sequence of tokens a split, see `corpus.py`."""
    plan = plan_corpus(reading.source, config.task, config.data, reading.roles, reading.driver)
    with write_artifact(output, "dataset", inputs, context) as draft:
        preprocessing, counts = write_corpus(draft, config.data, config.task, plan, reading.driver, context)
        check_unchanged(config, reading.digest, context)
        describe_corpus(draft, config.task, plan, preprocessing, counts, reading.facts)
    assert draft.artifact is not None
    tell_corpus(draft.metadata, context)
    return draft.artifact


def check_unchanged(config: StageConfig, before: str, context: Context) -> None:
    """Raises DataError if the source is no longer what it was when reading began."""
    if digest_inputs(find_source(config.data.source), config.data, digest_cache(context.home)) != before:
        raise changed_source(config.data.source)


def refuse_change(source: str, digest: str, inputs: Mapping[str, Ref]) -> None:
    """Raises DataError if the source is no longer what the run was started with (`inputs["source"]`)."""
    if "source" in inputs and inputs["source"].digest != digest:
        raise DataError(f"{source} changed since the run was started; run the same command again.", field="data.source")


def changed_source(source: str) -> DataError:
    return DataError(f"{source} changed while the run was under way; start again.", field="data.source")


def make_plan(config: StageConfig, source: Source, roles: Roles, driver: Driver) -> Plan:
    """First pass: indexes every row, then cleans and splits by the index alone."""
    units = plan_units(source)
    work = IndexRows(config.task, roles, config.data.split.seed)
    index = concat_index(driver(unit_items(units), work))
    cleaned = clean_rows(index, config.data, row_namer(index, units))
    return Plan(units, roles, index, cleaned, split_rows(index, cleaned, config.data.split))


def fit_preprocessing(config: StageConfig, plan: Plan, driver: Driver, context: Context) -> Preprocessing:
    """Second pass: the training rows, or a random sample of many, lie in a file while the task goes through them."""
    items = select_items(plan, fit_parts(plan))
    select = SelectRows(config.task, plan.roles, plan.cleaned.classes)
    with stored_batches(driver(items, select), context.work_folder) as batches:
        return get_task(config.task).fit(batches, plan.cleaned.classes, config.data)


def fit_parts(plan: Plan) -> np.ndarray:
    """`parts` with all dropped but the training rows to fit on."""
    import numpy as np

    training = np.flatnonzero(plan.parts == TRAIN)
    most = FIT_ROWS[plan.roles.modality]
    if len(training) > most:
        order = plan.index.column("order").to_numpy()[plan.cleaned.kept[training]]
        training = training[np.argsort(order, kind="stable")[:most]]
    chosen = np.full(len(plan.parts), DROPPED, np.int8)
    chosen[training] = TRAIN
    return chosen


def select_items(plan: Plan, parts: np.ndarray) -> list[Mapping[str, Any]]:
    """The units with the part of each of their rows."""
    return unit_items(plan.units, parts_by_unit(plan.index, plan.cleaned.kept, parts, len(plan.units)))


class StoredBatches:
    """Record batches of an Arrow file as tables, read from the disk each time they are gone through."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __iter__(self) -> Iterator[pa.Table]:
        import pyarrow as pa

        with pa.OSFile(str(self.path)) as file:
            reader = pa.ipc.open_file(file)
            for number in range(reader.num_record_batches):
                yield pa.Table.from_batches([reader.get_batch(number)])


@contextmanager
def stored_batches(tables: Iterator[pa.Table], folder: Path) -> Iterator[StoredBatches]:
    """Writes tables to a file in `folder` and yields them as a collection that can be gone through again."""
    import pyarrow as pa

    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "fit.arrow"
    try:
        writer = None
        for table in tables:
            writer = writer or pa.ipc.new_file(str(path), table.schema)
            writer.write_table(table)
        assert writer is not None, "check_parts leaves no split without training rows"
        writer.close()
        yield StoredBatches(path)
    finally:
        path.unlink(missing_ok=True)


def write_rows(
    dataset: Path, config: StageConfig, plan: Plan, preprocessing: Preprocessing, driver: Driver, context: Context
) -> None:
    """Last pass: encodes the kept rows and streams them into the splits, reporting progress once a second."""
    work = EncodeRows(SelectRows(config.task, plan.roles, plan.cleaned.classes), preprocessing)
    feature = get_task(config.task).feature
    total, reported = len(plan.parts), time.monotonic()
    for written in write_splits(dataset, driver(select_items(plan, plan.parts), work), feature):
        if time.monotonic() - reported > PROGRESS_S or written == total:
            context.event("progress", step=written, total=total)
            reported = time.monotonic()


def describe(
    draft: Draft, config: StageConfig, plan: Plan, preprocessing: Preprocessing, source: dict[str, Any]
) -> None:
    """Writes the schema, the preprocessing and the report, and sets the metadata."""
    import pyarrow as pa

    preprocessing.save(draft.path / "preprocess")
    names = pa.ipc.open_file(str(draft.path / "splits" / "train.arrow")).schema.names
    raw = ("id", "label", *get_task(config.task).columns)
    rows = count_rows(plan.parts)
    encoded = [name for name in names if name not in raw]
    classes = list(plan.cleaned.classes)
    draft.write_json("schema.json", {"task": config.task, "classes": classes, "encoded": encoded, "rows": rows})
    cut = count_cut(draft.path, preprocessing, config)
    report = make_report(plan.index, get_task(config.task).measures, plan.cleaned, plan.parts, preprocessing, source)
    draft.write_json("report.json", {**report, **({"cut": cut} if cut else {})}, content=False)
    draft.metadata = {"rows": rows, "classes": len(classes), "dropped": sum(plan.cleaned.dropped.values())}
    if cut:
        draft.metadata["cut"] = cut


def count_cut(dataset: Path, preprocessing: Preprocessing, config: StageConfig) -> dict[str, dict[str, int]]:
    """Rows of each split that were cut to their greatest length, by role; empty for a task that does not count them.

    Raises:
        DataError: If no target of a split is whole: nothing could be learnt of where one ends.
    """
    tables = {name: open_split(dataset, name).table for name in SPLITS}
    found = {name: preprocessing.count_cut(table) for name, table in tables.items() if table.num_rows}
    for name, counts in found.items():
        if counts.get("target", 0) == tables[name].num_rows:
            limit = config.data.text.max_target_length or config.data.text.max_length
            raise DataError(
                f"All {counts['target']} targets of the {name} split are longer than {limit} tokens; raise "
                "data.text.max_target_length.",
                field="data.text.max_target_length",
            )
    return {name: counts for name, counts in found.items() if counts}


def report_events(metadata: Mapping[str, Any], plan: Plan, context: Context) -> None:
    """Tells the user how many rows there are and what was left out, and MLflow the counts."""
    rows = ", ".join(f"{metadata['rows'][name]} {name}" for name in SPLITS)
    classes = f"; {metadata['classes']} classes" if metadata["classes"] else ""
    context.event("note", text=f"{rows}{classes}")
    for role in ("source", "target"):
        cut = sum(counts[role] for counts in metadata.get("cut", {}).values())
        if cut:
            field = "max_length" if role == "source" else "max_target_length"
            context.warn(f"Cut {cut} {role}s to the tokens that data.text.{field} allows; see report.json.")
    dropped = {reason: count for reason, count in plan.cleaned.dropped.items() if count}
    if dropped:
        reasons = ", ".join(f"{count} {reason.replace('_', ' ')}" for reason, count in dropped.items())
        context.warn(f"Dropped {sum(dropped.values())} of {plan.index.num_rows} rows: {reasons}; see report.json.")
    context.track("params", values={f"data.rows.{name}": count for name, count in metadata["rows"].items()})
