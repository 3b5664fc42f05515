"""Rows A5, A7 and 10: checkpoints that are cut, mislabelled or forged.

Each row has a control that shows what the bare stack makes of the same fault.
"""

from __future__ import annotations

import hashlib
import json
import pickle
import shutil
from pathlib import Path

import pytest

from components.artifacts import Artifact
from components.errors import CheckpointError
from components.train.checkpoint import MANIFEST_NAME, CheckpointFolder, sign
from components.train.engine import EngineSettings
from components.train.job import TrainJob
from components.train.loop import train
from components.train.result import job_digest
from tests.components.train.jobs import FakeWorker, Stopped, make_job

pytestmark = [pytest.mark.faults, pytest.mark.usefixtures("one_thread")]

CUTS = {"0": lambda size: 0, "1": lambda size: 1, "half": lambda size: size // 2, "-1": lambda size: size - 1}


@pytest.fixture(scope="module", params=[0, 2], ids=["torch", "zero2"])
def stopped(request: pytest.FixtureRequest, digits: Artifact, tmp_path_factory: pytest.TempPathFactory) -> TrainJob:
    """A job that was stopped after its second of three epochs; it has checkpoints of steps 8 and 16."""
    job = make_job(digits, tmp_path_factory.mktemp("stopped") / "work", epochs=3, zero={"stage": request.param})
    with pytest.raises(Stopped):
        train(job, FakeWorker(stop_at=2))
    return job


def copy_job(job: TrainJob, folder: Path) -> TrainJob:
    """The same job with a copy of its work folder and key."""
    shutil.copytree(job.work_folder, folder)
    return TrainJob(**{**vars(job), "work_folder": folder, "key_file": folder / "key"})


def checkpoints_of(job: TrainJob) -> CheckpointFolder:
    return CheckpointFolder(job.work_folder / "checkpoints", job.key_file, job_digest(job), 1, keep=2)


def files_of(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def cut(path: Path, size_bytes: int) -> None:
    with path.open("r+b") as handle:
        handle.truncate(size_bytes)


def bare_engine(job: TrainJob):
    """The job's engine without any check of ours in front of it."""
    from components.models.build import build_model
    from components.tasks import get_task
    from components.train.device import Hardware, plan_placement
    from components.train.engine import make_engine

    preprocessing = get_task(job.task).load(job.dataset / "preprocess")
    module = build_model(job.model, preprocessing.model_inputs(), 10)
    placement = plan_placement(Hardware(0, 1), 1, "fp32")
    return make_engine(module, EngineSettings(job.train, placement, "fp32", 0, 1))


@pytest.mark.parametrize("size", CUTS)
def test_A5_truncated_checkpoint_falls_back_to_the_one_before(stopped: TrainJob, size: str, tmp_path: Path) -> None:
    names = [path.relative_to(checkpoints_of(stopped).path(16)) for path in files_of(checkpoints_of(stopped).path(16))]
    assert len(names) >= 4  # state, generators, best weights, manifest
    for number, name in enumerate(names):
        checkpoints = checkpoints_of(copy_job(stopped, tmp_path / str(number)))
        damaged, warnings = checkpoints.path(16) / name, []
        cut(damaged, CUTS[size](damaged.stat().st_size))
        found = checkpoints.find(warnings.append)
        assert found is not None and found.step == 8, name
        assert len(warnings) == 1 and "step-00000016" in warnings[0]
        assert [path.name.split(".")[0] for path in (checkpoints.folder / "quarantine").iterdir()] == ["step-00000016"]


def test_A5_training_goes_on_from_the_one_before_bit_for_bit(stopped: TrainJob, tmp_path: Path) -> None:
    damaged_job, whole_job = copy_job(stopped, tmp_path / "damaged"), copy_job(stopped, tmp_path / "whole")
    largest = max(files_of(checkpoints_of(damaged_job).path(16)), key=lambda path: path.stat().st_size)
    cut(largest, largest.stat().st_size - 1)
    worker = FakeWorker()
    damaged, whole = train(damaged_job, worker), train(whole_job, FakeWorker())
    assert (damaged.facts["resumed_from_step"], whole.facts["resumed_from_step"]) == (8, 16)
    assert len(worker.warnings) == 1
    assert damaged.weights.read_bytes() == whole.weights.read_bytes()
    assert damaged.history == whole.history


def test_A5_a_flipped_bit_is_found(stopped: TrainJob, tmp_path: Path) -> None:
    for number, path in enumerate(files_of(checkpoints_of(stopped).path(16))):
        checkpoints = checkpoints_of(copy_job(stopped, tmp_path / str(number)))
        flip(checkpoints.path(16) / path.relative_to(checkpoints_of(stopped).path(16)))
        found = checkpoints.find(lambda text: None)
        assert found is not None and found.step == 8, path.name


def test_A5_control_the_bare_engine_loads_altered_weights(stopped: TrainJob, tmp_path: Path) -> None:
    import torch

    folder = checkpoints_of(copy_job(stopped, tmp_path / "copy")).path(16)
    engine = bare_engine(stopped)
    engine.load(folder)
    before = {name: value.clone() for name, value in engine.module.state_dict().items()}
    for path in folder.rglob("*.pt"):
        content = path.read_bytes()
        for value in before.values():
            content = content.replace(value.numpy().tobytes(), bytes(value.numel() * 4))
        path.write_bytes(content)
    engine.load(folder)  # no complaint
    after = engine.module.state_dict()
    engine.close()
    assert any(not torch.equal(before[name], after[name]) for name in before)


LATEST = {
    "missing": None,
    "empty": "",
    "garbage": "\x00../../etc/passwd",
    "absent": "step-00000099",
    "torn": "step-00000024",
    "older": "step-00000008",
}


@pytest.mark.parametrize("kind", LATEST)
def test_A7_latest_is_only_a_hint(stopped: TrainJob, kind: str, tmp_path: Path) -> None:
    checkpoints = checkpoints_of(copy_job(stopped, tmp_path / "copy"))
    (checkpoints.folder / "latest").unlink()
    if LATEST[kind] is not None:
        (checkpoints.folder / "latest").write_text(str(LATEST[kind]))
    if kind == "torn":
        shutil.copytree(checkpoints.path(16), checkpoints.path(24))
        (checkpoints.path(24) / MANIFEST_NAME).unlink()
    found = checkpoints.find(lambda text: None)
    assert found is not None and found.step == 16


def test_A7_none_valid_is_an_error_every_time(stopped: TrainJob, tmp_path: Path) -> None:
    job = copy_job(stopped, tmp_path / "copy")
    for step in (8, 16):
        (checkpoints_of(job).path(step) / MANIFEST_NAME).unlink()
    for _ in range(2):  # also when what failed has been set aside already
        worker = FakeWorker()
        with pytest.raises(CheckpointError, match="none that is whole"):
            train(job, worker)
        assert worker.reports == []


def test_A7_checkpoints_that_vanished_are_an_error(stopped: TrainJob, tmp_path: Path) -> None:
    job = copy_job(stopped, tmp_path / "copy")
    for step in (8, 16):
        shutil.rmtree(checkpoints_of(job).path(step))
    with pytest.raises(CheckpointError, match="none that is whole"):
        train(job, FakeWorker())


def test_A7_a_kill_before_the_first_checkpoint_may_start_again(stopped: TrainJob, tmp_path: Path) -> None:
    checkpoints = checkpoints_of(copy_job(stopped, tmp_path / "copy"))
    shutil.rmtree(checkpoints.folder)
    checkpoints.partial_path(1).mkdir(parents=True)
    assert checkpoints.find(pytest.fail) is None


def test_A7_control_deepspeed_finds_nothing_and_says_nothing(stopped: TrainJob, tmp_path: Path) -> None:
    if stopped.train.zero.stage == 0:
        pytest.skip("DeepSpeed's own control")
    engine = bare_engine(stopped)
    found = engine.engine.load_checkpoint(str(checkpoints_of(stopped).path(16)))  # has no `latest`
    engine.close()
    assert found == (None, None)


class Marker:
    """Unpickling it makes a file: the proof that foreign code ran."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple:
        return open, (self.path, "w")


def forge(checkpoints: CheckpointFolder, marker: Path, key: bytes) -> None:
    """Replaces the engine's state by a pickle that runs code, with a manifest whose digests fit, signed with `key`."""
    folder = checkpoints.path(16)
    manifest = json.loads((folder / MANIFEST_NAME).read_text())
    for path in folder.rglob("*.pt"):
        path.write_bytes(pickle.dumps(Marker(marker)))
        entry = {"sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "size_bytes": path.stat().st_size}
        manifest["body"]["files"][path.relative_to(folder).as_posix()] = entry
    manifest["hmac"] = sign(key, manifest["body"])
    (folder / MANIFEST_NAME).write_text(json.dumps(manifest))


def test_10_forged_checkpoint_is_never_unpickled(stopped: TrainJob, tmp_path: Path) -> None:
    job, marker = copy_job(stopped, tmp_path / "copy"), tmp_path / "marker"
    forge(checkpoints_of(job), marker, key=b"not this run's key, but as long.")
    result = train(job, FakeWorker())
    assert result.facts["resumed_from_step"] == 8
    assert not marker.exists()


def test_10_checkpoint_of_another_run_is_never_read(stopped: TrainJob, tmp_path: Path) -> None:
    job = copy_job(stopped, tmp_path / "copy")
    job.key_file.unlink()
    with pytest.raises(CheckpointError, match="none that is whole"):
        train(job, FakeWorker())


def test_10_an_added_file_is_refused(stopped: TrainJob, tmp_path: Path) -> None:
    checkpoints = checkpoints_of(copy_job(stopped, tmp_path / "copy"))
    (checkpoints.path(16) / "extra.pt").write_bytes(b"x")
    assert checkpoints.check(checkpoints.path(16)) == "it has other files than its manifest names"


def test_10_the_key_is_readable_by_its_owner_alone(stopped: TrainJob) -> None:
    assert stopped.key_file.stat().st_mode & 0o777 == 0o600
    assert len(stopped.key_file.read_bytes()) == 32


def test_10_control_deepspeed_runs_what_a_forged_checkpoint_says(stopped: TrainJob, tmp_path: Path) -> None:
    if stopped.train.zero.stage == 0:
        pytest.skip("the torch engine reads its state with weights_only")
    job, marker = copy_job(stopped, tmp_path / "copy"), tmp_path / "marker"
    forge(checkpoints_of(job), marker, key=job.key_file.read_bytes())
    engine = bare_engine(job)
    with pytest.raises(Exception):  # noqa: B017  it fails in some way, but only after the code ran
        engine.load(checkpoints_of(job).path(16))
    engine.close()
    assert marker.exists()


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
