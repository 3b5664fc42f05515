"""Tools of the tests that break checkpoints: small jobs, copies of them, and what must hold of a folder at any time."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from components.artifacts import Artifact
from components.artifacts.manifest import file_sha256
from components.train.checkpoint import CheckpointFolder
from components.train.job import TrainJob, TrainResult
from components.train.loop import train
from components.train.result import job_digest
from tests.components.train.jobs import FakeWorker, Stopped, make_job

TINY = {"architecture": "mlp", "hidden_sizes": [4]}
"""A few hundred parameters; its dropout makes a wrong generator state visible."""


def tiny_job(digits: Artifact, folder: Path, **train: Any) -> TrainJob:
    """A job of 3 epochs of 2 steps."""
    return make_job(digits, folder, TINY, **{"epochs": 3, "global_batch_size": 120, **train})


def stopped_job(digits: Artifact, folder: Path, **values: Any) -> TrainJob:
    """The same, stopped after its second epoch."""
    job = tiny_job(digits, folder, **values)
    with pytest.raises(Stopped):
        train(job, FakeWorker(stop_at=2))
    return job


def moved_job(job: TrainJob, folder: Path) -> TrainJob:
    """The job with another work folder."""
    return TrainJob(**{**vars(job), "work_folder": folder, "key_file": folder / "key"})


def copied_job(job: TrainJob, folder: Path) -> TrainJob:
    """The same job with a copy of its work folder and key."""
    shutil.copytree(job.work_folder, folder)
    return moved_job(job, folder)


def checkpoints_of(job: TrainJob) -> CheckpointFolder:
    return CheckpointFolder(
        job.work_folder / "checkpoints", job.key_file, job_digest(job), job.train.workers, job.train.keep_checkpoints
    )


def newest_whole(job: TrainJob) -> int:
    """Step of the checkpoint that a restart would take, 0 if none was ever written; fails if one was set aside."""
    found = checkpoints_of(job).find(pytest.fail)
    return found.step if found else 0


def outcome(result: TrainResult) -> tuple[str, list[dict[str, float]], dict[str, float]]:
    """What must be the same bit for bit; of the weights their digest: pytest takes minutes to tell two files apart."""
    return file_sha256(result.weights), result.history, dict(result.metrics)
