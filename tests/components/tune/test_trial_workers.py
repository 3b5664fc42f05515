"""A trial has the sweep's workers, whatever range the final training may run on."""

from dataclasses import replace
from pathlib import Path

from components.train.config import TrainConfig
from tests.components.tune.fakes import make_settings


def test_a_trial_does_not_take_the_range_of_the_final_training(tmp_path: Path) -> None:
    train = TrainConfig(workers=4, min_workers=2, global_batch_size=24)
    trial = replace(make_settings(tmp_path), train=train).job(0, {}).train
    assert (trial.workers, trial.min_workers) == (1, None)
    assert TrainConfig.model_validate(trial.model_dump()) == trial
