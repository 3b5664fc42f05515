"""k-fold cross-validation as an objective: a trial trains k times, each time validated on another part of the data.

The parts are cut from the training and validation splits; the test split stays closed. A report of such a trial is the
mean over the folds so far, so a scheduler may stop it between folds. Preprocessing stays as it was fitted on the
training split: refitting it would ask for another network in each fold.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from components.artifacts.dataset import open_split, split_path
from components.artifacts.local_store import write_durably
from components.artifacts.manifest import MANIFEST_NAME
from components.train.group import ALONE, Group
from components.train.job import TrainJob, Worker

if TYPE_CHECKING:
    import pyarrow as pa

Metrics = dict[str, float]


def make_folds(dataset: Path, folder: Path, count: int, seed: int) -> tuple[Path, ...]:
    """Writes `count` datasets whose validation splits are disjoint and together the whole; finds them on a restart.

    Args:
        dataset: Local folder of the Dataset artifact.
        folder: They lie in `0`, `1`, ... below it.
    """
    places = tuple(folder / str(index) for index in range(count))
    if all(place.exists() for place in places):
        return places
    import pyarrow as pa

    table = pa.concat_tables([open_split(dataset, name).table for name in ("train", "validation")])
    numbers = deal_rows(table, count, seed)
    for index, place in enumerate(places):
        partial = place.with_name(f".{place.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        write_fold(dataset, partial, table, [number == index for number in numbers], f"{count} {seed} {index}")
        shutil.rmtree(place, ignore_errors=True)
        partial.rename(place)
    return places


def deal_rows(table: pa.Table, count: int, seed: int) -> list[int]:
    """The fold of each row: a function of (seed, row identity), every class spread evenly.

    Rows of one identity (a source with several targets) share a fold: nothing leaks from training to validation.
    """
    ids = table.column("id").to_pylist()
    labels = table.column("label").to_pylist() if "label" in table.column_names else [0] * len(ids)
    label_of = dict(zip(ids, labels, strict=True))
    order = sorted(label_of, key=lambda identity: (label_of[identity], _rank(seed, identity)))
    fold_of = {identity: place % count for place, identity in enumerate(order)}
    return [fold_of[identity] for identity in ids]


def _rank(seed: int, identity: str) -> str:
    return hashlib.sha256(f"{seed} {identity}".encode()).hexdigest()


def write_fold(dataset: Path, place: Path, table: pa.Table, held_out: Sequence[bool], name: str) -> None:
    """One dataset: rows that are held out for validation, the others for training."""
    import pyarrow as pa
    import pyarrow.compute as pc

    mask = pa.array(held_out)
    parts = {"validation": table.filter(mask), "train": table.filter(pc.invert(mask))}
    (place / "splits").mkdir(parents=True)
    for split, rows in parts.items():
        with pa.OSFile(str(split_path(place, split)), "wb") as sink:  # type: ignore[arg-type]
            with pa.ipc.new_file(sink, rows.schema) as writer:
                writer.write_table(rows)
    schema = json.loads((dataset / "schema.json").read_text())
    schema["rows"] = {split: rows.num_rows for split, rows in parts.items()}
    (place / "schema.json").write_text(json.dumps(schema))
    os.symlink(dataset / "preprocess", place / "preprocess")
    digest = json.loads((dataset / MANIFEST_NAME).read_text())["digest"]
    # Only the digest: it tells checkpoints of one fold from those of another.
    (place / MANIFEST_NAME).write_text(json.dumps({"digest": _rank(0, f"{digest} {name}")}))


class FoldEnd(SystemExit):
    """Raised out of a report when a fold has had all epochs that a trial may run."""

    def __init__(self) -> None:
        super().__init__(0)


class FoldWorker:
    """The worker of one fold; rank 0 keeps the metrics of its best epoch, also over a kill."""

    def __init__(self, worker: Worker, epochs: int, metric: str, sign: int, notes: Path) -> None:
        self.rank, self.world_size, self.local_rank = worker.rank, worker.world_size, worker.local_rank
        self.progress = worker.progress
        self.epochs, self.metric, self.sign, self.notes = epochs, metric, sign, notes
        self.best: Metrics = json.loads(notes.read_text()) if self.rank == 0 and notes.exists() else {}

    def report(self, epoch: int, metrics: Mapping[str, float]) -> None:
        if self.rank == 0 and (not self.best or self.sign * metrics[self.metric] > self.sign * self.best[self.metric]):
            self.best = {name: float(value) for name, value in metrics.items()}
            write_durably(self.notes, json.dumps(self.best))
        if epoch >= self.epochs:
            raise FoldEnd


def cross_validate(
    job: TrainJob,
    worker: Worker,
    folds: Sequence[Path],
    epochs: int,
    metric: str,
    sign: int,
    train: Callable[[TrainJob, Worker], object],
    group: Group = ALONE,
) -> None:
    """Trains every fold and reports the mean over those that are done after each; a finished fold is not trained again.

    Every worker of a sharded trial calls it; what is on the disk is rank 0's to read and write.

    Args:
        epochs: Most epochs of a fold.
        metric, sign: Decide which epoch of a fold is its best; sign is 1 if more is better, else -1.
        group: The workers of a sharded trial.
    """
    scores: list[Metrics] = []
    for index, dataset in enumerate(folds):
        record = job.work_folder / f"fold-{index}.json"
        score = group.broadcast(_read_score(record, worker))
        if score is None:
            fold_worker = FoldWorker(worker, epochs, metric, sign, record.with_suffix(".best"))
            place = job.work_folder / f"fold-{index}"
            with suppress(FoldEnd):
                train(replace(job, dataset=dataset, work_folder=place), fold_worker)
            # Nobody may still be in its folder when rank 0 removes it.
            group.barrier()
            if worker.rank == 0:
                fold_worker.notes.rename(record)
                shutil.rmtree(place, ignore_errors=True)
            score = group.broadcast(_read_score(record, worker))
        scores.append(score)
        means = {name: sum(score[name] for score in scores) / len(scores) for name in scores[0]}
        worker.report(index + 1, means)


def _read_score(record: Path, worker: Worker) -> Metrics | None:
    return json.loads(record.read_text()) if worker.rank == 0 and record.exists() else None
