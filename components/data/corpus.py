"""Texts for a language model become one long sequence of tokens a split. The passes are those of `stage.py`:

    1. IndexRows     every text's digest and length; what is wrong with it
       plan_corpus   documents, duplicates and parts, decided on the index alone
    2. PickTexts     the training texts, or a random sample of many, for the tokenizer
    3. PackTexts     tokens of the kept texts, in the order of the source, END_OF_TEXT after each document

A document is a row of a table or a whole text file; a large file is read in pieces.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from components.artifacts import Draft
from components.artifacts.dataset import SPLITS, TokenWriter
from components.context import Context
from components.data.batches import DROPPED, IndexRows, Item, split_order
from components.data.clean import check_corrupt
from components.data.config import DataConfig, SplitConfig
from components.data.drivers import Driver
from components.data.index import NameRow, concat_index, parts_by_unit, row_namer, summarise, unit_items
from components.data.read import Roles, read_unit
from components.data.source import Source
from components.data.split import TEST, TRAIN, VALIDATION
from components.data.units import Unit, plan_units
from components.errors import DataError
from components.tasks import get_task

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

    from components.tasks.text_generation import LanguagePreprocessing

FIT_CHARACTERS = 64 << 20
"""Training characters a BPE vocabulary is fitted on: of more, a random sample of the documents."""
PROGRESS_S = 1.0
UTF8_BYTES = 4
"""Of a character, at most."""


@dataclass(frozen=True)
class Cut:
    """Where a text is divided between parts: from character `start` to `stop` it belongs to `part`."""

    part: int
    start: int
    stop: int


@dataclass
class CorpusPlan:
    """All decisions about the texts. Arrays have one entry a row of the index.

    Attributes:
        column: Of a table, the one with the texts.
        parts: Part of the text, int8; DROPPED where it is not kept. Of a text that is cut, the part of its beginning.
        cuts: The few texts that lie in several parts, by row of the index.
        ends: Whether a document ends with the text, bool.
        documents: Of each part.
        dropped: Documents by reason.
        corrupt: Names and reasons of the first unreadable texts.
    """

    units: list[Unit]
    column: str
    index: pa.Table
    parts: np.ndarray
    cuts: dict[int, list[Cut]]
    ends: np.ndarray
    documents: dict[str, int]
    dropped: dict[str, int]
    corrupt: list[dict[str, str]] = field(default_factory=list)


@dataclass(frozen=True)
class Documents:
    """The documents of an index, in its order: their first row, identity, length in characters, and whether kept."""

    first_row: np.ndarray
    ids: list[bytes]
    characters: np.ndarray
    of_row: np.ndarray


def write_corpus(
    draft: Draft, config: DataConfig, task: str, plan: CorpusPlan, driver: Driver, context: Context
) -> Any:
    """Fits the tokenizer and writes the token files; gives the preprocessing and the counts of each split."""
    preprocessing = fit_tokenizer(config, task, plan, driver)
    writer = TokenWriter(draft.path, preprocessing.vocab_size)
    work, reported, rows = PackTexts(preprocessing), time.monotonic(), 0
    with writer:
        for table in driver(corpus_items(plan, plan.parts), work):
            for part, tokens, size_bytes in zip(
                *(table.column(name).to_pylist() for name in table.column_names), strict=True
            ):
                writer.write(SPLITS[part], tokens, size_bytes)
            rows += table.num_rows
            if time.monotonic() - reported > PROGRESS_S:
                context.event("progress", step=rows, total=len(plan.parts))
                reported = time.monotonic()
    context.event("progress", step=len(plan.parts), total=len(plan.parts))
    return preprocessing, writer.counts()


def plan_corpus(source: Source, task: str, config: DataConfig, roles: Roles, driver: Driver) -> CorpusPlan:
    """First pass: indexes every text, then drops, merges and splits by the index alone.

    Raises:
        DataError: If there is no text, too many are unreadable, or a part would be empty.
    """
    units = plan_units(source)
    index = concat_index(driver(unit_items(units), IndexRows(task, roles, config.split.seed)))
    return plan_index(index, units, config, row_namer(index, units))


def plan_index(index: pa.Table, units: list[Unit], config: DataConfig, name_row: NameRow) -> CorpusPlan:
    """The decisions, from a whole index."""
    import numpy as np

    if not index.num_rows:
        raise DataError(f"{config.source} has no texts.", field="data.source")
    problems = {row: reason for row, reason in enumerate(index.column("problem").to_pylist()) if reason is not None}
    check_corrupt(problems, index.num_rows, config, name_row)
    documents = group_documents(index, units)
    bad = np.zeros(len(documents.ids), bool)
    bad[documents.of_row[list(problems)]] = True
    empty = (documents.characters == 0) & ~bad
    if empty.any() and "drop-missing" not in config.clean:
        row = int(documents.first_row[np.flatnonzero(empty)[0]])
        raise DataError(f"{name_row(row)} is empty; add drop-missing to data.clean.", field="data.clean")
    kept = np.flatnonzero(~bad & ~empty)
    duplicates = len(kept)
    if "deduplicate" in config.clean:
        kept = first_of_each(kept, documents.ids)
    duplicates -= len(kept)
    if not len(kept):
        raise DataError(f"{config.source} has no usable text.", field="data.source")
    dropped = {"corrupt": int(bad.sum()), "missing": int(empty.sum()), "duplicate": duplicates}
    parts, cuts = split_corpus(documents, kept, index, config.split)
    corrupt = [{"row": name_row(row), "reason": problems[row]} for row in list(problems)[:20]]
    ends = np.zeros(index.num_rows, bool)
    if len(kept) > 1:
        # A lone document has no neighbour to be kept apart from.
        last_row = np.append(documents.first_row[1:], index.num_rows) - 1
        ends[last_row] = True
    counts: dict[str, int] = {
        str(name): int((parts[documents.first_row[kept]] == part).sum()) for part, name in enumerate(SPLITS)
    }
    return CorpusPlan(units, config.columns.text, index, parts, cuts, ends, counts, dropped, corrupt)


def check_length(plan: CorpusPlan, tokenizer: str, seq_len: int) -> None:
    """Refuses parts that hold no sequence however a text is cut into tokens: a token is a character, or a byte of its
    UTF-8 at least. What only the tokens themselves tell is left to the training.

    Raises:
        DataError: Naming the part and how long it is.
    """
    import numpy as np

    lengths = np.asarray(plan.index.column("characters").fill_null(0).to_numpy(), np.int64)
    for part, name in enumerate(SPLITS[:2]):
        whole = (plan.parts == part) & ~np.isin(np.arange(len(lengths)), list(plan.cuts))
        pieces = [cut for cuts in plan.cuts.values() for cut in cuts if cut.part == part]
        characters = int(lengths[whole].sum()) + sum(cut.stop - cut.start for cut in pieces)
        most = characters * (1 if tokenizer == "character" else UTF8_BYTES) + int(plan.ends[whole].sum())
        if most <= seq_len:
            raise DataError(
                f"The {name} split has {characters} characters, too few for one sequence of {seq_len} tokens "
                "(train.seq_len) and the token after it; give more text, or make train.seq_len smaller.",
                field="train.seq_len",
            )


def group_documents(index: pa.Table, units: list[Unit]) -> Documents:
    """A row of a table is a document; the pieces of a text file are one."""
    import numpy as np

    rows = index.num_rows
    ids = [bytes(value or b"") for value in index.column("id").to_pylist()]
    lengths = np.asarray(index.column("characters").fill_null(0).to_numpy(), np.int64)
    if units[0].kind != "text":
        return Documents(np.arange(rows), ids, lengths, np.arange(rows))
    files = {name: number for number, name in enumerate(dict.fromkeys(unit.files[0] for unit in units))}
    file_of_unit = np.array([files[unit.files[0]] for unit in units])
    found, first_row, of_row = np.unique(
        file_of_unit[index.column("unit").to_numpy()], return_index=True, return_inverse=True
    )
    hashers = [hashlib.sha256() for _ in found]
    for row, document in enumerate(of_row):
        hashers[document].update(ids[row])
    characters = np.bincount(of_row, weights=lengths, minlength=len(found)).astype(np.int64)
    return Documents(first_row, [hasher.digest() for hasher in hashers], characters, of_row)


def first_of_each(kept: np.ndarray, ids: list[bytes]) -> np.ndarray:
    """The kept documents without those whose text occurred before."""
    import numpy as np

    seen: set[bytes] = set()
    chosen = []
    for document in kept:
        if ids[document] not in seen:
            seen.add(ids[document])
            chosen.append(document)
    return np.array(chosen, dtype=np.int64)


def split_corpus(
    documents: Documents, kept: np.ndarray, index: pa.Table, config: SplitConfig
) -> tuple[np.ndarray, dict[int, list[Cut]]]:
    """The part of each row of the index, and the rows that are cut.

    Raises:
        DataError: If there are too few documents to divide, or the way to split is not one for texts.
    """
    import numpy as np

    if config.by == "position":
        return split_by_position(documents, kept, index, config)
    if config.by != "random":
        raise DataError(
            f"data.split.by is {config.by}, but a language model's texts are split at random (by document) or by "
            "position; set one of these.",
            field="data.split.by",
        )
    needed = 3 if config.test else 2
    if len(kept) < needed:
        raise DataError(
            f"A random split needs at least {needed} documents, and there {'is' if len(kept) == 1 else 'are'} "
            f"{len(kept)}; set data.split.by to position, which cuts the text by characters.",
            field="data.split.by",
        )
    order = sorted(kept, key=lambda document: (split_order(config.seed, documents.ids[document]), document))
    of_document = np.full(len(documents.ids), DROPPED, np.int8)
    of_document[order] = shares_of(documents.characters[order], config)
    return of_document[documents.of_row], {}


def shares_of(characters: np.ndarray, config: SplitConfig) -> np.ndarray:
    """Parts of documents in the order of the shuffle: test, then validation, until each has its share of the text."""
    import numpy as np

    before = np.concatenate([[0], np.cumsum(characters)[:-1]]) / characters.sum()
    test, validation = config.test, config.test + config.validation
    parts = np.where(before < test, TEST, np.where(before < validation, VALIDATION, TRAIN))
    # A huge document may take more than its share: every part gets at least one.
    first = 1 if config.test else 0
    if not (parts == VALIDATION).any():
        parts[first] = VALIDATION
    if not (parts == TRAIN).any():
        parts[-1] = TRAIN
    return parts


def split_by_position(
    documents: Documents, kept: np.ndarray, index: pa.Table, config: SplitConfig
) -> tuple[np.ndarray, dict[int, list[Cut]]]:
    """The first characters train, the next validate, the last test, exactly by the shares."""
    import numpy as np

    lengths = np.asarray(index.column("characters").fill_null(0).to_numpy(), np.int64)
    used = np.isin(documents.of_row, kept)
    stops = np.cumsum(np.where(used, lengths, 0))
    total = int(stops[-1])
    bounds = [int(total * (1 - config.validation - config.test)), int(total * (1 - config.test)), total]
    if min(np.diff([0, *bounds][: 4 if config.test else 3])) < 1:
        raise DataError(f"{total} characters are too few to divide; give more text.", field="data.source")
    starts = stops - np.where(used, lengths, 0)
    parts = np.where(used, np.searchsorted(bounds[:2], starts, side="right"), DROPPED).astype(np.int8)
    cuts: dict[int, list[Cut]] = {}
    for row in np.flatnonzero(used & (np.searchsorted(bounds[:2], stops, side="left") != parts)):
        edges = [0, *(bound - int(starts[row]) for bound in bounds[:2]), int(lengths[row])]
        edges = [min(max(edge, 0), int(lengths[row])) for edge in edges]
        cuts[int(row)] = [Cut(part, edges[part], edges[part + 1]) for part in range(3) if edges[part + 1] > edges[part]]
    return parts, cuts


def corpus_items(plan: CorpusPlan, parts: np.ndarray) -> list[Item]:
    """The units with what becomes of each of their texts."""
    import numpy as np

    every = np.arange(plan.index.num_rows)
    kept = parts_by_unit(plan.index, every, parts, len(plan.units))
    ends = parts_by_unit(plan.index, every, plan.ends.astype(np.int8), len(plan.units))
    items = unit_items(plan.units, kept)
    number_of_row = plan.index.column("unit").to_numpy()
    row_in_unit = plan.index.column("row").to_numpy()
    cuts: dict[int, list] = {}
    for row, pieces in plan.cuts.items():
        cuts.setdefault(int(number_of_row[row]), []).append(
            [int(row_in_unit[row]), [[cut.part, cut.start, cut.stop] for cut in pieces]]
        )
    return [
        {**item, "column": plan.column, "ends": ends[item["number"]], "cuts": json.dumps(cuts.get(item["number"], []))}
        for item in items
    ]


def texts_of_unit(item: Item) -> Iterator[list[tuple[int, str, bool]]]:
    """Batches of (part, text, whether a document ends with it) of one unit, cut where the plan says so."""
    import numpy as np

    parts, ends = np.frombuffer(item["parts"], np.int8), np.frombuffer(item["ends"], np.int8)
    cuts = dict(json.loads(item["cuts"]))
    unit = Unit.from_json(item["unit"])
    for table in read_unit(unit, Roles("text", item["column"], None)):
        batch: list[tuple[int, str, bool]] = []
        for row, text in zip(table.column("row").to_pylist(), table.column("feature").to_pylist(), strict=True):
            if row >= len(parts):
                raise DataError(f"{unit.files[0]} changed while it was read; start again.", field="data.source")
            if parts[row] == DROPPED or not text:
                continue
            pieces = [Cut(*values) for values in cuts.get(row, [])] or [Cut(int(parts[row]), 0, len(text))]
            for piece in pieces:
                last = piece is pieces[-1]
                batch.append((piece.part, text[piece.start : piece.stop], bool(ends[row]) and last))
        if batch:
            yield batch


@dataclass(frozen=True)
class PickTexts:
    """The texts of the training part, as a column `text`."""

    def __call__(self, item: Item) -> Iterator[pa.Table]:
        import pyarrow as pa

        for batch in texts_of_unit(item):
            texts = [text for part, text, _ in batch if part == TRAIN]
            if texts:
                yield pa.table({"text": pa.array(texts, pa.large_string())})


@dataclass(frozen=True)
class PackTexts:
    """Tokens of the kept texts: columns part, tokens (uint32, little endian) and the bytes of the text."""

    preprocessing: LanguagePreprocessing

    def __call__(self, item: Item) -> Iterator[pa.Table]:
        import numpy as np
        import pyarrow as pa

        end = np.array([self.preprocessing.end_of_text], "<u4").tobytes()
        for batch in texts_of_unit(item):
            encoded = self.preprocessing.encode({"text": [text for _, text, _ in batch]})["input_ids"]
            tokens = [
                np.asarray(ids, "<u4").tobytes() + (end if ends else b"")
                for ids, (_, _, ends) in zip(encoded, batch, strict=True)
            ]
            yield pa.table(
                {
                    "part": pa.array([part for part, _, _ in batch], pa.int8()),
                    "tokens": pa.array(tokens, pa.large_binary()),
                    "size_bytes": pa.array([len(text.encode()) for _, text, _ in batch], pa.int64()),
                }
            )


def fit_tokenizer(config: DataConfig, task: str, plan: CorpusPlan, driver: Driver) -> LanguagePreprocessing:
    """Second pass, where the tokenizer has something to learn."""
    import numpy as np

    batches: Iterator[pa.Table] = iter(())
    if config.text.tokenizer in ("bpe", "character"):
        parts = plan.parts.copy()
        if config.text.tokenizer == "bpe":
            lengths = np.asarray(plan.index.column("characters").fill_null(0).to_numpy(), np.int64)
            order = np.argsort(plan.index.column("order").to_numpy(), kind="stable")
            training = order[parts[order] == TRAIN]
            parts[training[np.cumsum(lengths[training]) - lengths[training] > FIT_CHARACTERS]] = DROPPED
        batches = driver(corpus_items(plan, parts), PickTexts())
    fitted: Any = get_task(task).fit(batches, (), config)
    return fitted


def describe_corpus(
    draft: Draft, task: str, plan: CorpusPlan, preprocessing: Any, counts: Mapping[str, Any], source: Mapping[str, Any]
) -> None:
    """Writes the schema, the preprocessing and the report, and sets the metadata."""
    preprocessing.save(draft.path / "preprocess")
    schema = {"task": task, "classes": [], "vocab_size": preprocessing.vocab_size, **counts}
    draft.write_json("schema.json", schema)
    characters = plan.index.column("characters").drop_null()
    report = {
        "source": dict(source),
        "texts": {"read": plan.index.num_rows, **plan.documents},
        "tokens": counts["tokens"],
        "bytes": counts["bytes"],
        "bytes_per_token": round(sum(counts["bytes"].values()) / max(1, sum(counts["tokens"].values())), 4),
        "measures": {"characters": summarise(characters)} if len(characters) else {},
        "dropped": {**plan.dropped, "corrupt_rows": plan.corrupt},
        "preprocessing": {"tokenizer": preprocessing.kind, **preprocessing.model_inputs()},
    }
    draft.write_json("report.json", report, content=False)
    draft.metadata = {
        "tokens": counts["tokens"],
        "documents": plan.documents,
        "vocab_size": preprocessing.vocab_size,
        "dropped": sum(plan.dropped.values()),
    }


def tell_corpus(metadata: Mapping[str, Any], context: Context) -> None:
    """Tells the user and MLflow how much text there is."""
    tokens = ", ".join(f"{metadata['tokens'][name]:,} {name}" for name in SPLITS)
    context.event("note", text=f"{tokens} tokens; vocabulary of {metadata['vocab_size']:,}")
    if metadata["dropped"]:
        context.warn(f"Dropped {metadata['dropped']} documents; see report.json.")
    context.track("params", params={f"data.tokens.{name}": count for name, count in metadata["tokens"].items()})
