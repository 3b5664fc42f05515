"""The outcome of a training as a file of its work folder: a finished job answers from it at once."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from components.artifacts.local_store import write_durably
from components.artifacts.manifest import MANIFEST_NAME, file_sha256
from components.train.job import TrainJob, TrainResult

RESULT_NAME = "result.json"


def job_values(job: TrainJob) -> dict[str, Any]:
    """What decides a training's outcome: task, model, train, seed and the content of the dataset."""
    manifest = job.dataset / MANIFEST_NAME
    return {
        "task": job.task,
        "model": job.model.model_dump(mode="json"),
        "train": job.train.model_dump(mode="json"),
        "seed": job.seed,
        "dataset": json.loads(manifest.read_text())["digest"] if manifest.exists() else "",
    }


def job_digest(job: TrainJob) -> str:
    """SHA-256 over `job_values`."""
    return hashlib.sha256(json.dumps(job_values(job), sort_keys=True).encode()).hexdigest()


def write_result(job: TrainJob, result: TrainResult) -> None:
    """Records the outcome, durably."""
    values = {**asdict(result), "weights": result.weights.name, "weights_sha256": file_sha256(result.weights)}
    write_durably(job.work_folder / RESULT_NAME, json.dumps({"job": job_digest(job), **values}, indent=1))


def read_result(job: TrainJob) -> TrainResult | None:
    """The outcome recorded for this job, or None if there is none or its weights are not what was recorded."""
    try:
        values: dict[str, Any] = json.loads((job.work_folder / RESULT_NAME).read_text())
        weights = weights_folder(job) / values.pop("weights")
        if values.pop("job") != job_digest(job) or file_sha256(weights) != values.pop("weights_sha256"):
            return None
        return TrainResult(weights=weights, **values)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def weights_folder(job: TrainJob) -> Path:
    """Where the best epoch's weights lie."""
    return job.work_folder / "weights"
