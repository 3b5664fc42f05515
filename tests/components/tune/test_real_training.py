"""A sweep over real trainings (an MLP on digits): killed between checkpoint and report, and on Ray."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from components.artifacts import Ref
from components.config import Config
from components.context import Context
from components.train.loop import train
from components.tune.stage import StageConfig, run
from tests.components.tune.fakes import make_context

SPACE = {
    "train.learning_rate": {"log_uniform": [1e-4, 1e-2]},
    "model.hidden_sizes": {"choice": [[16], [32]]},
}


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Ref:
    from components.data import stage

    folder = tmp_path_factory.mktemp("digits")
    config: Config = stage.StageConfig.model_validate(
        {"task": "image-classification", "data": {"source": "builtin://digits"}}
    )
    return stage.run(config, {}, str(folder / "dataset"), make_context(folder)).ref


def search(folder: Path, digits: Ref, context: Context, train_function=train, **tune):
    values = {"search": "bayesian", "trials": 4, "scheduler": "asha", "asha": {"grace_epochs": 1}, "space": SPACE}
    sections = {
        "model": {"architecture": "mlp"},
        "train": {"epochs": 3, "global_batch_size": 128, "precision": "fp32"},
        "tune": {**values, "concurrency": 1, **tune},
    }
    config = StageConfig.model_validate({"task": "image-classification", **sections})
    return run(config, {"dataset": digits}, str(folder / "sweep"), context, train=train_function)


class Killed(BaseException):
    """Stands for SIGKILL."""


class MortalWorker:
    """Dies when it is to report for the n-th time: the checkpoint is written, the report is not."""

    rank, world_size, local_rank = 0, 1, 0

    def __init__(self, worker, lives: list[int]) -> None:
        self.progress, self.inner, self.lives = worker.progress, worker, lives

    def report(self, epoch, metrics):
        self.lives[0] -= 1
        if self.lives[0] == 0:
            raise Killed
        self.inner.report(epoch, metrics)


@pytest.fixture(scope="module")
def control(tmp_path_factory: pytest.TempPathFactory, digits: Ref):
    folder = tmp_path_factory.mktemp("control")
    return search(folder, digits, make_context(folder))


def test_killed_between_checkpoint_and_report_ends_with_the_same_bytes(tmp_path, digits, control):
    lives = [0]

    def mortal_train(job, worker):
        return train(job, MortalWorker(worker, lives))

    for last_report in (2, 3, 2):
        lives[0] = last_report
        with pytest.raises(Killed):
            search(tmp_path, digits, make_context(tmp_path), mortal_train)
    assert search(tmp_path, digits, make_context(tmp_path)).digest == control.digest


def test_on_ray_the_sweep_finds_the_same(tmp_path, digits, control, ray_session):
    artifact = search(tmp_path, digits, replace(make_context(tmp_path), debug=False))
    assert [trial["state"] for trial in artifact.read_json("trials.json")] == [
        trial["state"] for trial in control.read_json("trials.json")
    ]
    assert artifact.read_json("best.json")["metric"]["value"] > 0.8


def test_folds_and_measured_aims_on_real_networks(tmp_path, digits):
    values = {"search": "random", "trials": 2, "folds": 2, "max_epochs": 1, "scheduler": None, "space": SPACE}
    metrics = ["accuracy", "parameters", "latency_ms", "size_bytes"]
    aims = {"metric": metrics, "choose": {"max_drop": 1, "prefer": "parameters"}}
    artifact = search(tmp_path, digits, make_context(tmp_path), **values, **aims)
    best, trials = artifact.read_json("best.json"), artifact.read_json("trials.json")
    assert [trial["epochs"] for trial in trials] == [2, 2]
    assert best["aims"]["parameters"] == min(trial["metrics"]["parameters"] for trial in trials)
    assert 4 * best["aims"]["parameters"] <= best["aims"]["size_bytes"] < 5 * best["aims"]["parameters"]
    assert 0 < best["aims"]["latency_ms"] < 100
