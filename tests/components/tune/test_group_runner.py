"""components/tune/group_runner.py: how a cluster is divided among groups of workers."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from components.errors import StageError
from components.train.device import Hardware
from components.tune import group_runner
from components.tune.group_runner import DEAD_REASON, Groups, plan_groups
from components.tune.runners import LOST_REASON


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
    plan = plan_groups([Hardware(gpus, cores)], workers, concurrency, trials)
    assert (plan.count, plan.placement.cpus_per_worker, plan.placement.gpus_per_worker) == expected
    assert plan.count * workers * plan.placement.cpus_per_worker <= cores
    assert plan.count * workers * plan.placement.gpus_per_worker <= gpus


def test_a_group_that_can_never_fit_is_refused():
    with pytest.raises(StageError, match=r"tune.workers is 3, but the Ray cluster has 2 cores"):
        plan_groups([Hardware(0, 2)], 3, None, 6)


@pytest.mark.parametrize(
    ("failures", "there", "reason"),
    [
        ({0: RuntimeError("[gloo/transport/tcp/pair.cc] Connection closed by peer")}, {"a"}, LOST_REASON),
        ({0: RuntimeError("[gloo/transport/tcp/pair.cc] Connection closed by peer")}, {"a", "b"}, DEAD_REASON),
        ({0: RuntimeError("Connection closed by peer"), 1: ValueError("no such thing")}, {"a"}, "no such thing"),
    ],
)
def test_a_broken_connection_is_put_down_to_what_was_lost(monkeypatch, failures, there, reason):
    monkeypatch.setattr(group_runner, "alive_machines", lambda: frozenset(there))
    monkeypatch.setattr(group_runner, "LOSS_WAIT_S", 0.0)
    assert reason in str(group_runner.name_group_death(failures, frozenset({"a", "b"})))


def test_a_group_that_was_buried_is_given_no_trial():
    sweep = SimpleNamespace()  # that is asked nothing
    groups = Groups(tasks={"task": 1})
    assert group_runner._answer(sweep, None, groups, 0, {"kind": "next"}) is None
    assert group_runner._answer(sweep, None, groups, 0, {"kind": "message", "number": 3, "message": {}}) is False
    assert groups.trials == {}
