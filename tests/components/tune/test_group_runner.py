"""components/tune/group_runner.py: how a cluster is divided; trials on two workers that share a standing group."""

from __future__ import annotations

import os

import pytest

from components.errors import StageError
from components.train.device import Hardware
from components.tune.group_runner import plan_groups


@pytest.mark.parametrize(
    ("gpus", "cores", "workers", "concurrency", "trials", "expected"),
    [
        (0, 2, 2, None, 6, (1, 1, 0)),
        (0, 16, 2, None, 6, (6, 1, 0)),
        (0, 16, 4, 2, 6, (2, 2, 0)),
        (8, 64, 4, None, 6, (2, 8, 1)),
        (8, 64, 4, None, 1, (1, 16, 1)),
    ],
)
def test_groups_divide_the_cluster_so_that_all_of_them_fit(gpus, cores, workers, concurrency, trials, expected):
    plan = plan_groups(Hardware(gpus, cores), workers, concurrency, trials)
    assert (plan.count, plan.placement.cpus_per_worker, plan.placement.gpus_per_worker) == expected
    assert plan.count * workers * plan.placement.cpus_per_worker <= cores
    assert plan.count * workers * plan.placement.gpus_per_worker <= gpus


def test_a_group_that_can_never_fit_is_refused():
    with pytest.raises(StageError, match=r"tune.workers is 3, but the Ray cluster has 2 cores"):
        plan_groups(Hardware(0, 2), 3, None, 6)


def dying_rank_train(job, worker):
    """Trial 1 loses the process of its second rank once."""
    from components.train.loop import train

    marker = job.work_folder / "died"
    if job.work_folder.name == "001" and worker.rank == 1 and not marker.exists():
        marker.touch()
        os._exit(9)
    return train(job, worker)


@pytest.mark.faults
@pytest.mark.usefixtures("ray_session")
def test_B4_sharded_trials_share_a_group_and_a_dead_rank_fails_its_trial_alone(tmp_path, capsys):
    from dataclasses import replace

    from components.context import read_lines
    from components.data import stage as data
    from components.tune.stage import StageConfig, run
    from tests.components.tune.fakes import make_context

    context = replace(make_context(tmp_path), debug=False)
    task = {"task": "image-classification"}
    config = data.StageConfig.model_validate({**task, "data": {"source": "builtin://digits"}})
    digits = data.run(config, {}, str(tmp_path / "dataset"), context).ref
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
