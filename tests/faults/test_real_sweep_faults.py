"""Rows B3 and B4 over real trainings: populations that exchange checkpoints, a rank that dies in a sharded trial."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest

from components.context import read_lines
from components.tune.stage import StageConfig, run
from tests.components.tune.fakes import make_context
from tests.components.tune.test_real_training import SPACE, digits, search

__all__ = ["digits"]  # the fixture

pytestmark = pytest.mark.faults


def test_B3_a_population_goes_on_from_the_checkpoints_of_its_best(tmp_path, digits):
    values = {"search": "random", "trials": 4, "pbt": {"interval_epochs": 1}, "space": SPACE}
    trials = {}
    for scheduler in ("pbt", None):
        folder = tmp_path / str(scheduler)
        folder.mkdir()
        artifact = search(folder, digits, make_context(folder), scheduler=scheduler, **values)
        trials[scheduler] = artifact.read_json("trials.json")
    assert [trial["epochs"] for trial in trials["pbt"]] == [3] * 4
    taken = [trial["trial"] for trial in trials["pbt"] if trial.get("takeovers")]
    gains = [trials["pbt"][t]["metrics"]["accuracy"] - trials[None][t]["metrics"]["accuracy"] for t in taken]
    # One epoch on a good network is worth more than three on its own one.
    assert taken and min(gains) > 0.05


def dying_rank_train(job, worker):
    """Trial 1 loses the process of its second rank once."""
    from components.train.loop import train

    marker = job.work_folder / "died"
    if job.work_folder.name == "001" and worker.rank == 1 and not marker.exists():
        marker.touch()
        os._exit(9)
    return train(job, worker)


@pytest.mark.usefixtures("ray_session")
def test_B4_sharded_trials_share_a_group_and_a_dead_rank_fails_its_trial_alone(tmp_path, digits):
    context = replace(make_context(tmp_path), debug=False)
    task = {"task": "image-classification"}
    space = {"train.learning_rate": {"grid": [1e-4, 1e-3, 1e-2]}}
    tune = {"search": "grid", "workers": 2, "space": space}
    train = {"epochs": 2, "global_batch_size": 128, "precision": "fp32", "zero": {"stage": 2}}
    sections = {"model": {"architecture": "mlp"}, "train": train, "tune": tune}
    artifact = run(
        StageConfig.model_validate({**task, **sections}),
        {"dataset": digits},
        str(tmp_path / "sweep"),
        context,
        train=dying_rank_train,
    )
    trials = artifact.read_json("trials.json")
    assert [trial["state"] for trial in trials] == ["finished"] * 3
    assert [trial["failures"] for trial in trials] == [0, 1, 0]
    events = [event for event in read_lines(context.run_folder / "events.jsonl") if "epoch" in event]
    first = {event["trial"]: event["time"] for event in reversed(events)}
    last = {event["trial"]: event["time"] for event in events}
    assert first[2] - last[1] < 8  # the group that stands takes the next trial
