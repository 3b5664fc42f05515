"""components/tune/group_runner.py: how a cluster is divided among groups of workers."""

from __future__ import annotations

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
