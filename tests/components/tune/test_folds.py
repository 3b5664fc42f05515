"""components/tune/folds.py: the folds part the data, and their mean is what a trial reports."""

from __future__ import annotations

import json

import pyarrow as pa
import pytest

from components.artifacts.dataset import open_split, split_path
from components.tune.folds import cross_validate, deal_rows, make_folds
from components.tune.trial import TrialStopped
from tests.components.tune.fakes import make_settings


@pytest.fixture
def dataset(tmp_path):
    folder = tmp_path / "dataset"
    (folder / "splits").mkdir(parents=True)
    (folder / "preprocess").mkdir()
    (folder / "schema.json").write_text(json.dumps({"encoded": ["x"], "rows": {}}))
    (folder / "manifest.json").write_text(json.dumps({"digest": "d"}))
    for name, rows in (("train", range(24)), ("validation", range(24, 30))):
        table = pa.table({"id": [f"row {row}" for row in rows], "label": [row % 3 for row in rows], "x": list(rows)})
        with pa.OSFile(str(split_path(folder, name)), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
    return folder


def test_a_source_with_several_targets_lies_in_one_fold():
    ids = ["a", "b", "c", "a", "d", "a", "e", "b"]
    folds = deal_rows(pa.table({"id": ids}), 2, seed=0)
    assert len({(identity, fold) for identity, fold in zip(ids, folds, strict=True)}) == 5
    assert set(folds) == {0, 1}


def test_every_row_is_validated_once_and_classes_are_spread(tmp_path, dataset):
    folds = make_folds(dataset, tmp_path / "folds", 3, seed=0)
    held_out = [open_split(fold, "validation") for fold in folds]
    assert sorted(row for split in held_out for row in split.column("x")) == list(range(30))
    for fold, split in zip(folds, held_out, strict=True):
        assert set(split.column("x")).isdisjoint(open_split(fold, "train").column("x"))
        counts = [split.column("label").count(label) for label in range(3)]
        assert max(counts) - min(counts) <= 1
    assert len({json.loads((fold / "manifest.json").read_text())["digest"] for fold in folds}) == 3


def test_folds_are_a_function_of_the_seed_and_found_again(tmp_path, dataset):
    columns = [
        open_split(make_folds(dataset, tmp_path / name, 3, seed)[0], "validation").column("x")
        for name, seed in (("a", 0), ("b", 0), ("a", 0), ("c", 1))
    ]
    assert columns[0] == columns[1] == columns[2] != columns[3]


class Recorder:
    rank, world_size, local_rank = 0, 1, 0

    def __init__(self, last: int | None = None) -> None:
        self.reports, self.last = [], last

    def progress(self, step, total, metrics): ...

    def report(self, epoch, metrics):
        self.reports.append((epoch, metrics["accuracy"]))
        if epoch == self.last:
            raise TrialStopped


def fold_train(job, worker):
    for epoch, gain in enumerate((0.0, 0.2, 0.1), start=1):
        worker.report(epoch, {"accuracy": int(job.dataset.name) / 10 + gain})
    (job.work_folder.parent / "trained").open("a").write(job.dataset.name)


def run_folds(tmp_path, worker, epochs=3):
    job = make_settings(tmp_path).job(0, {})
    job.work_folder.mkdir(parents=True, exist_ok=True)
    folds = [tmp_path / str(index) for index in range(3)]
    cross_validate(job, worker, folds, epochs, "accuracy", 1, fold_train)
    return job.work_folder


def test_a_report_is_the_mean_of_the_best_epochs_so_far(tmp_path):
    worker = Recorder()
    run_folds(tmp_path, worker)
    assert worker.reports == [(1, pytest.approx(0.2)), (2, pytest.approx(0.25)), (3, pytest.approx(0.3))]


def test_a_trial_may_be_given_fewer_epochs(tmp_path):
    worker = Recorder()
    run_folds(tmp_path, worker, epochs=1)
    assert worker.reports[-1] == (3, pytest.approx(0.1))


def test_a_fold_that_is_done_is_not_trained_again(tmp_path):
    with pytest.raises(TrialStopped):
        run_folds(tmp_path, Recorder(last=2), epochs=9)
    worker = Recorder()
    folder = run_folds(tmp_path, worker, epochs=9)
    assert (folder / "trained").read_text() == "012"
    assert [epoch for epoch, _ in worker.reports] == [1, 2, 3]


def test_a_kill_within_a_fold_forgets_no_best_epoch(tmp_path):
    class Killed(BaseException):
        pass

    def killed_late(job, worker):
        worker.report(1, {"accuracy": 0.9})
        raise Killed

    def resumed(job, worker):
        for epoch in (1, 2):  # the loop tells the checkpoint's epoch again; here only a later, worse one
            worker.report(epoch, {"accuracy": 0.1})

    job, worker = make_settings(tmp_path).job(0, {}), Recorder()
    job.work_folder.mkdir(parents=True)
    with pytest.raises(Killed):
        cross_validate(job, worker, [tmp_path / "0"], 2, "accuracy", 1, killed_late)
    cross_validate(job, worker, [tmp_path / "0"], 2, "accuracy", 1, resumed)
    assert worker.reports == [(1, 0.9)]
