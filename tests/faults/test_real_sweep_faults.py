"""Rows B3 and B4 over real trainings: populations that exchange checkpoints, a rank that dies in a sharded trial."""

from __future__ import annotations

import os
import time
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


HANGS_AFTER_S = 20
"""Without a report: many times what an epoch takes here."""


def failing_rank_train(job, worker):
    """The second rank of trial 0 hangs once, that of trial 1 dies once."""
    from components.train.loop import train

    marker = job.work_folder / "failed"
    if job.work_folder.name in ("000", "001") and worker.rank == 1 and not marker.exists():
        marker.touch()
        if job.work_folder.name == "001":
            os._exit(9)
        time.sleep(10_000)
    return train(job, worker)


@pytest.mark.usefixtures("ray_session")
def test_B4_sharded_trials_share_a_group_and_a_dead_or_stuck_rank_fails_its_trial_alone(tmp_path, digits):
    context = replace(make_context(tmp_path), debug=False)
    task = {"task": "image-classification"}
    space = {"train.learning_rate": {"grid": [1e-4, 1e-3, 1e-2]}}
    tune = {"search": "grid", "workers": 2, "space": space, "report_timeout_s": HANGS_AFTER_S}
    train = {"epochs": 2, "global_batch_size": 128, "precision": "fp32", "zero": {"stage": 2}}
    sections = {"model": {"architecture": "mlp"}, "train": train, "tune": tune}
    artifact = run(
        StageConfig.model_validate({**task, **sections}),
        {"dataset": digits},
        str(tmp_path / "sweep"),
        context,
        train=failing_rank_train,
    )
    trials = artifact.read_json("trials.json")
    assert [trial["state"] for trial in trials] == ["finished"] * 3
    course = artifact.read_json("course.json")
    assert [trial["failures"] for trial in course] == [1, 1, 0]
    assert course[0]["reason"] == f"it did not report for {HANGS_AFTER_S} s"
    assert course[1]["reason"] == "one of its worker processes died (killed, or crashed in native code)"
    events = [event for event in read_lines(context.run_folder / "events.jsonl") if "epoch" in event]
    first = {event["trial"]: event["time"] for event in reversed(events)}
    last = {event["trial"]: event["time"] for event in events}
    assert first[2] - last[1] < 8  # the group that stands takes the next trial
