"""Small jobs, workers that stop or die where they are told to, and groups of two processes without ports."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from components.artifacts import Artifact
from components.models.build import parse_model_config
from components.train.config import TrainConfig
from components.train.job import TrainJob

MLP = {"architecture": "mlp", "hidden_sizes": [16]}
"""Its dropout of 0.1 makes a wrong generator state visible."""


def make_job(dataset: Artifact, folder: Path, model: Mapping[str, Any] = MLP, **train: Any) -> TrainJob:
    """A job of 4 epochs of 8 steps in fp32; each folder has a key of its own.

    Sharded, it may get a second worker unless it says how many it has: DeepSpeed trains it, however many there are.
    """
    values = {"epochs": 4, "global_batch_size": 32, "precision": "fp32", **train}
    if values.get("zero", {}).get("stage") and "workers" not in values:
        values.update(workers=2, min_workers=1)
    return TrainJob(
        task="image-classification",
        model=parse_model_config(model),
        train=TrainConfig.model_validate(values),
        seed=0,
        dataset=dataset.path,
        work_folder=folder,
        key_file=folder / "key",
    )


KNOWN_PACE = ("loss", "samples_per_s", "eta_s", "mfu", "data_wait")


class Stopped(Exception):
    """What a sweep raises out of a report."""


@dataclass
class FakeWorker:
    """Remembers reports and warnings; raises Stopped after epoch `stop_at`."""

    stop_at: int = 0
    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    reports: list[tuple[int, dict[str, float]]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def progress(self, step: int, total: int, metrics: Mapping[str, float]) -> None:
        assert 0 < step <= total
        assert {"loss", "samples_per_s", "eta_s"} <= set(metrics) <= {*KNOWN_PACE}

    def report(self, epoch: int, metrics: Mapping[str, float]) -> None:
        self.reports.append((epoch, dict(metrics)))
        if epoch == self.stop_at:
            raise Stopped

    def warn(self, text: str) -> None:
        self.warnings.append(text)


@dataclass
class MortalWorker(FakeWorker):
    """Kills its own process with SIGKILL in the middle of an epoch, as soon as step `die_at` is done."""

    die_at: int = 0

    def progress(self, step: int, total: int, metrics: Mapping[str, float]) -> None:
        if step == self.die_at:
            os.kill(os.getpid(), signal.SIGKILL)


def train_and_die(job: TrainJob, die_at: int) -> None:
    """Trains in a process of its own that is killed at step `die_at`."""
    process = multiprocessing.get_context("spawn").Process(target=_train_mortal, args=(job, die_at))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL


def _train_mortal(job: TrainJob, die_at: int) -> None:
    from components.train import meter
    from components.train.loop import train

    meter.INTERVAL_S = 0.0
    os.environ["OMP_NUM_THREADS"] = "1"
    train(job, MortalWorker(die_at=die_at))


def train_pair(job: TrainJob, rendezvous: Path, stop_at: int = 0) -> list[int]:
    """Trains with two workers that meet through a file; gives their exit codes.

    Args:
        stop_at: Both are killed by SIGKILL right after the checkpoint of this epoch; 0 trains to the end.
    """
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_train_rank, args=(job, rendezvous, rank, stop_at)) for rank in (0, 1)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    return [process.exitcode or 0 for process in processes]


@dataclass
class PairWorker(FakeWorker):
    """One of two; dies where a sweep would stop it."""

    def report(self, epoch: int, metrics: Mapping[str, float]) -> None:
        if epoch == self.stop_at:
            os.kill(os.getpid(), signal.SIGKILL)


def _train_rank(job: TrainJob, rendezvous: Path, rank: int, stop_at: int) -> None:
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", OMP_NUM_THREADS="1")
    import torch.distributed as dist

    from components.train.loop import train

    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
    result = train(job, PairWorker(stop_at=stop_at, rank=rank, world_size=2, local_rank=rank))
    (job.work_folder / f"resumed.{rank}").write_text(str(result.facts["resumed_from_step"]))


def train_and_tell(job: TrainJob, rendezvous: Path, prepare: Callable[[int], None]) -> list[dict[str, Any]]:
    """Trains with two workers that meet through a file; gives the facts and the warnings of each.

    Args:
        prepare: Called in each worker with its rank before it trains.
    """
    context = multiprocessing.get_context("spawn")
    job.work_folder.mkdir(parents=True, exist_ok=True)
    processes = [context.Process(target=_train_told, args=(job, rendezvous, rank, prepare)) for rank in (0, 1)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    return [json.loads((job.work_folder / f"told.{rank}").read_text()) for rank in (0, 1)]


def _train_told(job: TrainJob, rendezvous: Path, rank: int, prepare: Callable[[int], None]) -> None:
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", OMP_NUM_THREADS="1")
    import torch.distributed as dist

    from components.train.loop import train

    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
    prepare(rank)
    worker = FakeWorker(rank=rank, world_size=2, local_rank=rank)
    result = train(job, worker)
    told = {"facts": dict(result.facts), "warnings": worker.warnings}
    (job.work_folder / f"told.{rank}").write_text(json.dumps(told))
