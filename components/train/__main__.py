"""Trains a job without Ray, in one process or under torchrun; for debugging, profiling and bare GPU machines.

    python -m components.train JOB.json [--accept-changes]
    torchrun --standalone --nproc-per-node 2 -m components.train JOB.json

JOB.json holds the fields of `TrainJob`. The result goes to `result.json` in its work folder. SIGTERM stops it after a
checkpoint, with exit code 130; the same command goes on. A checkpoint of other data, seed or settings is refused with
the differences, unless `--accept-changes` is given; the result then names them.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from components.errors import PenstockError
from components.models.build import parse_model_config
from components.train.config import TrainConfig
from components.train.job import TrainJob


@dataclass(frozen=True)
class PrintingWorker:
    """A worker that prints, one line a report."""

    rank: int
    world_size: int
    local_rank: int

    def progress(self, step: int, total: int, metrics: Mapping[str, float]) -> None:
        print(f"step {step}/{total} {show(metrics)}", flush=True)

    def report(self, epoch: int, metrics: Mapping[str, float]) -> None:
        if self.rank == 0:
            print(f"epoch {epoch} {show(metrics)}", flush=True)


def show(metrics: Mapping[str, float]) -> str:
    return " ".join(f"{name} {value:.4g}" for name, value in metrics.items())


def read_job(path: Path, accept_changes: bool = False) -> TrainJob:
    """A TrainJob from its JSON."""
    raw = json.loads(path.read_text())
    folders = {name: Path(raw[name]) for name in ("dataset", "work_folder", "key_file")}
    model, train_config = parse_model_config(raw["model"]), TrainConfig.model_validate(raw["train"])
    return TrainJob(
        task=raw["task"],
        model=model,
        train=train_config,
        seed=raw["seed"],
        **folders,
        accept_changes=accept_changes,
    )


def main(arguments: Sequence[str]) -> int:
    """Joins the process group of torchrun, if there is one, and trains; gives the exit code."""
    from components.train.device import detect_hardware, plan_placement
    from components.train.loop import train
    from components.train.preemption import note_sigterm

    note_sigterm()
    parser = argparse.ArgumentParser(prog="python -m components.train")
    parser.add_argument("job", type=Path, help="a TrainJob as JSON")
    parser.add_argument("--accept-changes", action="store_true", help="continue a checkpoint of another job")
    options = parser.parse_args(arguments)
    job = read_job(options.job, options.accept_changes)
    worker = PrintingWorker(*(int(os.environ.get(name, default)) for name, default in RANK_VARIABLES))
    if worker.world_size > 1:
        import torch.distributed as dist

        placement = plan_placement(detect_hardware(), worker.world_size, job.train.precision, worker.local_rank)
        dist.init_process_group(placement.backend)
    try:
        train(job, worker)
    except PenstockError as error:
        print(error.message, file=sys.stderr)
        return error.exit_code
    return 0


RANK_VARIABLES = (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0"))

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
