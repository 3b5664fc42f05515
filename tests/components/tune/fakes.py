"""A training run that costs nothing: its accuracy is a function of the configuration, its checkpoint a small file.

Like the real loop it writes its checkpoint before it reports, and tells what it knew again after a restart.
"""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

from components.context import Context
from components.models.config import MlpConfig
from components.train.config import TrainConfig
from components.train.job import TrainJob, TrainResult, Worker
from components.tune.pbt import Exploit
from components.tune.stage import StageConfig
from components.tune.stage import make_plan as plan_sweep
from components.tune.sweep import SweepPlan
from components.tune.trial import TrialSettings

EPOCHS = 9
SPACE = {
    "train.learning_rate": {"log_uniform": [1e-5, 1e-1]},
    "model": {"choice": [{"architecture": "mlp"}, {"architecture": "cnn"}]},
    "train.global_batch_size": {"choice": [32, 64]},
}


def fake_train(job: TrainJob, worker: Worker) -> TrainResult:
    checkpoint = job.work_folder / "history.json"
    history = json.loads(checkpoint.read_text()) if checkpoint.exists() else []
    for item in list(history):
        worker.report(item["epoch"], {"accuracy": item["accuracy"], "loss": item["loss"]})
    with (job.work_folder.parent.parent / "ledger.txt").open("a") as ledger:
        for epoch in range(len(history) + 1, job.train.epochs + 1):
            metrics = fake_metrics(job, epoch)
            ledger.write(f"{job.work_folder.name} {epoch}\n")
            ledger.flush()
            history.append({"epoch": epoch, **metrics})
            partial = checkpoint.with_suffix(".partial")
            partial.write_text(json.dumps(history))
            partial.rename(checkpoint)  # a kill must not leave half of it
            worker.progress(epoch, job.train.epochs, {"loss": metrics["loss"], "samples_per_s": 1.0})
            worker.report(epoch, metrics)
    return TrainResult(job.train.epochs, fake_metrics(job, job.train.epochs), history, checkpoint, {})


def fake_inherit(settings: TrialSettings, exploits: list[Exploit]) -> None:
    """Moves the small checkpoint, as `inherit_checkpoints` moves a real one."""
    for exploit in exploits:
        target = settings.folder(exploit.trial)
        target.mkdir(parents=True, exist_ok=True)
        shutil.copy(settings.folder(exploit.source) / "history.json", target / "history.json")


def fake_metrics(job: TrainJob, epoch: int) -> dict[str, float]:
    loss = abs(math.log10(job.train.learning_rate) + 3) + 0.5 * (job.model.architecture == "cnn") + 1 / epoch
    return {"accuracy": 1 / (1 + loss), "loss": loss}


def make_plan(epochs: int = EPOCHS, **tune: Any) -> SweepPlan:
    return plan_sweep(make_config(epochs, **tune))


def make_config(epochs: int = EPOCHS, seed: int = 0, **tune: Any) -> StageConfig:
    values = {"search": "bayesian", "trials": 6, "space": SPACE, **tune}
    sections = {"model": {"architecture": "mlp"}, "train": {"epochs": epochs}, "tune": values, "seed": seed}
    return StageConfig.model_validate({"task": "image-classification", **sections})


def make_settings(folder: Path, epochs: int = EPOCHS) -> TrialSettings:
    return TrialSettings(
        task="image-classification",
        model=MlpConfig(architecture="mlp"),
        train=TrainConfig(epochs=epochs),
        seed=0,
        dataset=folder,
        work_folder=folder,
    )


def make_context(folder: Path) -> Context:
    (folder / "run").mkdir(exist_ok=True)
    (folder / "work").mkdir(exist_ok=True)
    return Context("run", "tune", folder, folder / "run", folder / "work", debug=True)
