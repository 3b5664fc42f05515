"""components/tune/ray_runner.py: the same sweep on Ray Tune's actors."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest

from components.artifacts import write_artifact
from components.tune.stage import StageConfig, run
from tests.components.tune.fakes import EPOCHS, SPACE, fake_train, make_context

pytestmark = pytest.mark.usefixtures("ray_session")


def run_stage(folder, train, debug, **tune):
    folder.mkdir()
    context = replace(make_context(folder), debug=debug)
    with write_artifact(str(folder / "dataset"), "dataset", {}, context) as draft:
        draft.write_json("schema.json", {})
    values = {"search": "bayesian", "trials": 6, "space": SPACE, "scheduler": "asha", **tune}
    sections = {"model": {"architecture": "mlp"}, "train": {"epochs": EPOCHS}, "tune": values}
    config = StageConfig.model_validate({"task": "image-classification", **sections})
    return run(config, {"dataset": draft.artifact.ref}, str(folder / "sweep"), context, train=train)


def dying_train(job, worker):
    """Trial 1 loses its process once, trial 3 each time."""
    marker = job.work_folder / "died"
    if job.work_folder.name == "003" or (job.work_folder.name == "001" and not marker.exists()):
        marker.touch()
        os._exit(9)
    return fake_train(job, worker)


def test_one_trial_at_a_time_on_ray_equals_the_sweep_in_this_process(tmp_path):
    here = run_stage(tmp_path / "here", fake_train, debug=True)
    there = run_stage(tmp_path / "there", fake_train, debug=False, concurrency=1)
    assert there.digest == here.digest
    assert not (tmp_path / "there" / "work" / "tune").exists()


def test_a_grid_side_by_side_equals_the_grid_in_this_process_and_dead_processes_are_made_up_for(tmp_path):
    grid = {"train.learning_rate": {"grid": [1e-4, 1e-3, 1e-2]}, "train.global_batch_size": {"grid": [32, 64]}}
    values = {"search": "grid", "trials": None, "scheduler": None, "space": grid}
    here = run_stage(tmp_path / "here", fake_train, debug=True, **values).read_json("trials.json")
    sweep = run_stage(tmp_path / "there", dying_train, debug=False, **values)
    there, course = sweep.read_json("trials.json"), sweep.read_json("course.json")
    assert there[3]["state"] == "failed" and "its process died" in there[3]["reason"]
    assert [trial["failures"] for trial in course] == [0, 1, 0, 2, 0, 0]
    assert "its process died" in course[1]["reason"]
    del here[3], there[3]
    assert there == here
