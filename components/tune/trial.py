"""One trial, in the process that is already there: a training run whose reports go to the sweep."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components.errors import PenstockError, as_disk_full
from components.models.config import ModelConfig
from components.train.config import TrainConfig
from components.train.group import ALONE, Group
from components.train.job import TrainJob, TrainResult, Worker
from components.tune.fields import apply_config
from components.tune.leftovers import leftovers_ended

TrainFunction = Callable[[TrainJob, Worker], TrainResult]
Message = dict[str, Any]
"""From a trial to the sweep: `state` is measured (with metrics), report (with epoch, metrics, pace), finished, failed
or fatal (with reason)."""
Send = Callable[[Message], bool]
"""Delivers a message and says whether the trial goes on, or raises TrialStopped."""


class TrialStopped(SystemExit):
    """Raised out of a report when the sweep stops the trial.

    A SystemExit, so that no `except Exception` on its way holds it up, and Tune takes it for a quiet end of its thread.
    """

    def __init__(self) -> None:
        super().__init__(0)


@dataclass(frozen=True)
class TrialSettings:
    """What all trials share; plain values, for they travel to other processes.

    Attributes:
        dataset: Local folder of the Dataset artifact.
        work_folder: Trial 3 keeps its checkpoints in `trials/003` below it.
        measures: What is measured of each network, because the sweep aims at it.
        report_timeout_s: Seconds without a report after which a trial hangs.
        workers: Processes of a trial.
        folds: Datasets of a cross-validation; none trains on `dataset` itself.
        epochs: Most epochs of a fold.
        metric, sign: Which epoch of a fold is its best.
    """

    task: str
    model: ModelConfig
    train: TrainConfig
    seed: int
    dataset: Path
    work_folder: Path
    measures: tuple[str, ...] = ()
    report_timeout_s: float | None = None
    workers: int = 1
    folds: tuple[Path, ...] = ()
    epochs: int = 0
    metric: str = ""
    sign: int = 1

    def folder(self, number: int) -> Path:
        return self.work_folder / "trials" / f"{number:03d}"

    def job(self, number: int, config: Mapping[str, Any], seed: int | None = None) -> TrainJob:
        """The training run of a trial. All have the spec's seed, as the final training does, but repeats."""
        model, train = apply_config(self.model, self.train, config)
        # A batch may not divide by the workers; as in the final training it is rounded up to one that does.
        parts = self.workers * train.gradient_accumulation_steps
        batch = -(-train.global_batch_size // parts) * parts
        return TrainJob(
            task=self.task,
            model=model,
            train=train.model_copy(update={"workers": self.workers, "min_workers": None, "global_batch_size": batch}),
            seed=self.seed if seed is None else seed,
            dataset=self.dataset,
            work_folder=self.folder(number),
            key_file=self.work_folder / "key",
        )


class TrialWorker:
    """The only worker of a trial. Its last progress goes along with each report, to show the pace."""

    rank = 0
    world_size = 1
    local_rank = 0

    def __init__(self, send: Send) -> None:
        self.send = send
        self.pace: dict[str, float] = {}

    def progress(self, step: int, total: int, metrics: Mapping[str, float]) -> None:
        self.pace = {name: metrics[name] for name in ("loss", "samples_per_s") if name in metrics}

    def report(self, epoch: int, metrics: Mapping[str, float]) -> None:
        values = {name: float(value) for name, value in metrics.items()}
        if not self.send({"state": "report", "epoch": epoch, "metrics": values, "pace": self.pace}):
            raise TrialStopped


def run_trial(
    settings: TrialSettings,
    number: int,
    config: Mapping[str, Any],
    train: TrainFunction,
    send: Send,
    seed: int | None = None,
) -> None:
    """Trains to the end or to an error and sends the outcome. An error of the trial goes no further.

    Raises:
        TrialStopped: When the sweep stops the trial; there is nothing to send then.
    """
    folder = settings.folder(number)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        job = settings.job(number, config, seed)
        if settings.measures:
            send({"state": "measured", "metrics": measure(job, settings.measures)})
        with leftovers_ended():
            train_whole(settings, job, TrialWorker(send), train)
    except TrialStopped:
        raise
    except (Exception, SystemExit) as error:  # noqa: BLE001 - recorded with its trial; the others go on
        send(failure(error, folder))
    else:
        send({"state": "finished"})


def train_whole(
    settings: TrialSettings, job: TrainJob, worker: Worker, train: TrainFunction, group: Group = ALONE
) -> None:
    """The training of a trial: one, or one for each fold."""
    if not settings.folds:
        train(job, worker)
        return
    from components.tune.folds import cross_validate

    cross_validate(job, worker, settings.folds, settings.epochs, settings.metric, settings.sign, train, group)


def measure(job: TrainJob, wanted: tuple[str, ...]) -> dict[str, float]:
    from components.tune.measure import measure_network

    return measure_network(job, wanted)


def failure(error: BaseException, folder: Path) -> Message:
    """What the sweep is told of an error. A full disk is no fault of the trial: every other one would meet it too."""
    full = as_disk_full(error, place=folder.parent.parent)
    if full is not None:
        return {"state": "fatal", "reason": full.message}
    (folder / "error.txt").write_text("".join(traceback.format_exception(error)))
    text = " ".join(str(error).split())[:500]
    if not isinstance(error, PenstockError):
        text = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return {"state": "failed", "reason": text}
