"""components/tune/folds.py on several workers: two real processes train the folds of one sharded trial."""

from __future__ import annotations

import json
import os
import signal
from functools import partial
from pathlib import Path

from components.tune.folds import FoldWorker, cross_validate, make_folds
from tests.builders import build_dataset
from tests.components.train.jobs import PairWorker, make_job
from tests.components.train.ranks import run_ranks

EPOCHS = 2


class Teller(PairWorker):
    """Rank 0 writes down what the sweep would be told."""

    def report(self, epoch, metrics):
        if self.rank == 0:
            with (self.folder / "told.jsonl").open("a") as handle:
                handle.write(json.dumps([epoch, dict(metrics)]) + "\n")


def train_folds(job, worker, folds: tuple[Path, ...], die: bool = False) -> None:
    """Each rank; `die` kills the whole group in its second fold, behind the first epoch's checkpoint."""
    from components.train.group import Group
    from components.train.loop import train

    def train_and_note(fold_job, fold_worker: FoldWorker):
        if worker.rank == 0:
            with (job.work_folder / "begun").open("a") as handle:
                handle.write(fold_job.dataset.name)
        report = fold_worker.report

        def report_or_die(epoch, metrics):
            report(epoch, metrics)
            if die and fold_job.dataset == folds[1]:
                os.kill(os.getpid(), signal.SIGKILL)

        fold_worker.report = report_or_die
        result = train(fold_job, fold_worker)
        raise AssertionError(f"a fold must end at its last epoch, not with {result}")

    teller = Teller(rank=worker.rank, world_size=worker.world_size, local_rank=worker.local_rank)
    teller.folder = job.work_folder
    group = Group(worker.rank, worker.world_size, "cpu")
    cross_validate(job, teller, folds, EPOCHS, "accuracy", 1, train_and_note, group)


def told(folder: Path) -> list[tuple[int, dict[str, float]]]:
    return [tuple(json.loads(line)) for line in (folder / "told.jsonl").read_text().splitlines()]


def test_killed_in_a_fold_all_ranks_go_on_in_that_fold(tmp_path):
    dataset = build_dataset(tmp_path, rows=200)
    folds = make_folds(dataset.path, tmp_path / "folds", 2, seed=0)
    jobs = [
        make_job(dataset, tmp_path / name, epochs=EPOCHS, workers=2, zero={"stage": 2})
        for name in ("control", "killed")
    ]
    for job in jobs:
        job.work_folder.mkdir()
    assert run_ranks(partial(train_folds, folds=folds), jobs[0], 2, tmp_path) == [0, 0]
    assert -signal.SIGKILL in run_ranks(partial(train_folds, folds=folds, die=True), jobs[1], 2, tmp_path)
    assert [epoch for epoch, _ in told(jobs[1].work_folder)] == [1]
    assert run_ranks(partial(train_folds, folds=folds), jobs[1], 2, tmp_path) == [0, 0]
    assert [(job.work_folder / "begun").read_text() for job in jobs] == ["01", "011"]
    control, resumed = (told(job.work_folder) for job in jobs)
    # The first fold's mean is told again, from its record; what the kill interrupted ends as if nothing had been.
    assert resumed == [control[0], *control]
    assert not list(jobs[1].work_folder.glob("fold-*/*"))
