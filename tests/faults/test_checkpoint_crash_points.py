"""Rows A3 and A4: a kill after every single file operation, and what a power loss may leave of them."""

from __future__ import annotations

import os
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from components.artifacts import Artifact, local_store, open_artifact, write_artifact
from components.train import checkpoint
from components.train.job import TrainJob
from components.train.loop import train
from components.train.result import read_result
from tests.builders import make_context
from tests.components.train.jobs import FakeWorker
from tests.faults.checkpoints import copied_job, moved_job, newest_whole, outcome, stopped_job, tiny_job
from tests.faults.conftest import FULL
from tests.faults.file_operations import Recorder
from tests.faults.power_loss import losses

pytestmark = [pytest.mark.faults, pytest.mark.usefixtures("one_thread")]

SEED = 20260
KINDS: dict[str, dict[str, Any]] = {
    "torch": {"ema": {"decay": 0.9}},
    "zero2-background": {"zero": {"stage": 2}, "checkpoint_every_steps": 1},
}


@pytest.fixture(scope="module", params=KINDS)
def stopped(request: pytest.FixtureRequest, digits: Artifact, tmp_path_factory: pytest.TempPathFactory) -> TrainJob:
    """Stopped after its second of three epochs of two steps."""
    return stopped_job(digits, tmp_path_factory.mktemp("stopped") / "work", **KINDS[request.param])


def finish_under(job: TrainJob, stop_after: int | None) -> Recorder:
    """Trains to the end, or until it is killed after that many file operations."""
    with Recorder(job.work_folder, stop_after) as recorder:
        train(job, FakeWorker())
    return recorder


def steps_after(job: TrainJob) -> tuple[int, ...]:
    """Checkpoints that there may be while a stopped job comes to its end: the old one, or one of the new ones."""
    return (4, 5, 6) if job.train.checkpoint_every_steps else (4, 6)


def names_of(recorder: Recorder) -> list[tuple[str, str]]:
    """Kinds and paths alone, without what is drawn for each attempt: a result tells how long it took."""
    return [(kind, re.sub("[0-9a-f]{16}", "*", path)) for kind, path, _ in recorder.log]


def every_point(count: int, step: int) -> range:
    """All kills, or for the costly part of a short test every `step`th."""
    return range(0, count, 1 if FULL else step)


def test_A3_every_operation_up_to_the_result(
    stopped: TrainJob, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """Resume, best weights, save, removal of old checkpoints and the result; then the same call goes on to the end."""
    control = copied_job(stopped, tmp_path / "control")
    whole = finish_under(control, None)
    expected, count = outcome(train(control, FakeWorker())), len(whole.log)
    touched = [(kind, path.split("/")[0]) for kind, path, _ in whole.log]
    assert {"checkpoints", "weights", f".result.json.{os.getpid()}.partial"} <= {folder for _, folder in touched}
    assert ("rmdir", "checkpoints") in touched  # an old one was removed
    assert count > 60
    points, continued = every_point(count, 1 if stopped.train.zero.stage == 0 else 6), set(every_point(count, 12))
    record_property("n", len(points))
    for stop_after in points:
        job = copied_job(stopped, tmp_path / "job")
        killed = finish_under(job, stop_after)
        assert killed.killed and names_of(killed) == names_of(whole)[:stop_after], stop_after
        assert newest_whole(job) in steps_after(job), stop_after
        if stop_after in continued:
            worker = FakeWorker()
            assert outcome(train(job, worker)) == expected, stop_after
            assert worker.warnings == []
        recorded = read_result(job)
        assert recorded is None or outcome(recorded) == expected
        shutil.rmtree(job.work_folder)


def test_A3_every_operation_of_the_very_first_save(
    digits: Artifact, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """With the run's key and its folders; before there is a checkpoint the same call begins anew."""
    control = tiny_job(digits, tmp_path / "control", epochs=1)
    tmp_path.joinpath("control").mkdir()
    whole = finish_under(control, None)
    expected = outcome(train(control, FakeWorker()))
    points = every_point(len(whole.log), 3)
    assert len(whole.log) > 40
    record_property("n", len(points))
    for stop_after in points:
        job = moved_job(control, tmp_path / "job")
        job.work_folder.mkdir()
        assert finish_under(job, stop_after).killed
        assert outcome(train(job, FakeWorker())) == expected, stop_after
        shutil.rmtree(job.work_folder)


@pytest.mark.parametrize("exchange", [True, False], ids=["exchange", "rename"])
def test_A3_every_operation_of_replacing_an_artifact(
    exchange: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, record_property: Callable[[str, object], None]
) -> None:
    """Also where the file system cannot exchange two folders in one step."""
    if not exchange:
        monkeypatch.setattr(local_store, "exchange", lambda first, second: False)
    store = tmp_path / "store"
    store.mkdir()
    write_words(store / "words", "old")
    before = shutil.copytree(store, tmp_path / "before")
    with Recorder(store) as whole:
        write_words(store / "words", "new")
    assert read_words(store / "words") == "new" and len(whole.log) > 15
    record_property("n", len(whole.log))
    for stop_after in range(len(whole.log)):
        shutil.rmtree(store)
        shutil.copytree(before, store)
        with Recorder(store, stop_after) as killed:
            write_words(store / "words", "new")
        assert killed.killed
        assert read_words(store / "words") in ("old", "new"), stop_after
        write_words(store / "words", "newer")
        assert read_words(store / "words") == "newer"
        assert [path.name for path in store.iterdir()] == ["words"], stop_after


def write_words(folder: Path, text: str) -> None:
    with write_artifact(str(folder), "dataset", {}, make_context(folder.parent.parent / "home")) as draft:
        (draft.path / "part").mkdir()
        (draft.path / "part" / "words.txt").write_text(text)
        (draft.path / "more.txt").write_text(text)


def read_words(folder: Path) -> str:
    artifact = open_artifact(str(folder), kind="dataset")
    texts = {(artifact.path / name).read_text() for name in ("part/words.txt", "more.txt")}
    assert len(texts) == 1
    return texts.pop()


def test_A3_control_a_file_that_is_replaced_in_place_is_torn(tmp_path: Path) -> None:
    """`torch.save` to the same name, as most trainings write their newest checkpoint."""
    path = tmp_path / "newest.pt"
    torch.save({"step": 1, "weights": torch.ones(10)}, path)
    whole_file = path.read_bytes()

    def save_over() -> None:
        with path.open("wb") as handle:
            torch.save({"step": 2, "weights": torch.zeros(10)}, handle)

    with Recorder(tmp_path) as whole:
        save_over()
    unreadable = 0
    for stop_after in range(len(whole.log)):
        path.write_bytes(whole_file)
        with Recorder(tmp_path, stop_after):
            save_over()
        try:
            torch.load(path, weights_only=True)
        except Exception:
            unreadable += 1
    assert unreadable > 3


def test_A4_whatever_a_power_loss_leaves_is_the_old_or_the_new(
    stopped: TrainJob, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """After each operation of a training from step 4 to its end; nothing that was told as done is lost."""
    control = copied_job(stopped, tmp_path / "control")
    whole = finish_under(control, None)
    done = names_of(whole).index(("rename", "checkpoints/.step-00000006.*.partial"))
    safe = names_of(whole).index(("fsync", "checkpoints"), done) + 1
    every = 1 if FULL or stopped.train.zero.stage == 0 else 5
    states = losses(stopped.work_folder, whole.log, tmp_path, random.Random(SEED), 8 if FULL else 1, every)
    record_property("n", len(states))
    for number, left in states:
        found = newest_whole(moved_job(stopped, left))
        assert found == 6 if number >= safe else found in steps_after(stopped), (number, left.name, f"seed {SEED}")
    for _, left in states[:: 40 if FULL else 150]:
        assert outcome(train(moved_job(stopped, left), FakeWorker())) == outcome(train(control, FakeWorker())), left
    shutil.rmtree(tmp_path)


def test_A4_the_very_first_checkpoint_and_its_key_outlive_a_power_loss(digits: Artifact, tmp_path: Path) -> None:
    control = tiny_job(digits, tmp_path / "control", epochs=1)
    (tmp_path / "nothing").mkdir()
    (tmp_path / "control").mkdir()
    whole = finish_under(control, None)
    done = names_of(whole).index(("rename", "checkpoints/.step-00000002.*.partial"))
    safe = names_of(whole).index(("fsync", "checkpoints"), done) + 1
    for number, left in losses(tmp_path / "nothing", whole.log, tmp_path, random.Random(SEED), draws=1):
        found = newest_whole(moved_job(control, left))
        assert found == 2 if number >= safe else found in (0, 2), (number, left.name, f"seed {SEED}")


def test_A4_an_artifact_outlives_a_power_loss(tmp_path: Path) -> None:
    store = tmp_path / "store"
    store.mkdir()
    write_words(store / "words", "old")
    before = shutil.copytree(store, tmp_path / "before")
    with Recorder(store) as whole:
        write_words(store / "words", "new")
    states = losses(before, whole.log, tmp_path, random.Random(SEED), draws=20)
    for _, left in states:
        assert read_words(left / "words") in ("old", "new"), (left.name, f"seed {SEED}")
    assert read_words(states[-1][1] / "words") == read_words(states[-3][1] / "words") == "new"


def test_A4_control_without_our_fsyncs_it_is_lost(
    stopped: TrainJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "sync_path", lambda path: None)
    monkeypatch.setattr(local_store, "sync_path", lambda path: None)
    whole = finish_under(copied_job(stopped, tmp_path / "control"), None)
    broken = 0
    for _, left in losses(stopped.work_folder, whole.log, tmp_path, random.Random(SEED), draws=1, every=2):
        try:
            newest_whole(moved_job(stopped, left))
        except (pytest.fail.Exception, checkpoint.CheckpointError):
            broken += 1
    assert broken >= 1


def test_A4_control_replacing_one_file_by_rename_is_not_enough(tmp_path: Path) -> None:
    """`torch.save` beside it and `os.replace`: whole after a kill, torn after a power loss."""
    before, folder = tmp_path / "before", tmp_path / "folder"
    before.mkdir()
    torch.save({"step": 1}, before / "newest.pt")
    shutil.copytree(before, folder)
    with Recorder(folder) as whole:
        with open(folder / "new.pt", "wb") as handle:
            torch.save({"step": 2}, handle)
        os.replace(folder / "new.pt", folder / "newest.pt")
    unreadable = 0
    for _, left in losses(before, whole.log, tmp_path, random.Random(SEED), draws=4):
        try:
            torch.load(left / "newest.pt", weights_only=True)
        except Exception:
            unreadable += 1
    assert unreadable >= 1
