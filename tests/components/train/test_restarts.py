"""What a training group's failures lead to: tried again, or told."""

from __future__ import annotations

import pytest

from components.context import read_lines
from components.errors import PreemptedError, StageError
from components.train.failures import count_restarts
from tests.builders import make_context

CUT_OFF = RuntimeError("[.../gloo/gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:63667.")
DIVERGED = StageError("Training diverged.")


@pytest.fixture
def dead():
    """What Ray tells of a worker whose process is gone. Ray is imported in tests only: it reads its settings then."""
    from ray.exceptions import ActorDiedError
    from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError

    return WorkerHealthCheckFailedError("A worker health check failed.", ActorDiedError())


@pytest.fixture
def policy(tmp_path):
    from components.train.restarts import RestartPolicy

    context = make_context(tmp_path, "train")
    (context.work_folder / "checkpoints").mkdir()
    return RestartPolicy(context.work_folder, context, limit=2)


@pytest.mark.parametrize("others", [{}, {0: CUT_OFF}, {0: ValueError("?")}])
def test_a_lost_worker_is_tried_again_and_told(others, dead, policy):
    (policy.work_folder / "checkpoints" / "step-00000300").mkdir()
    policy.after_exception(None, {**others, 1: dead})
    (warning,) = (event["text"] for event in read_lines(policy.context.run_folder / "events.jsonl"))
    assert warning.startswith("Worker 1 died") and warning.endswith("training goes on from step 300.")
    assert count_restarts(policy.work_folder) == 1


def test_a_broken_connection_may_be_all_that_is_heard_of_a_death(policy):
    policy.after_exception(None, {0: CUT_OFF})
    assert count_restarts(policy.work_folder) == 1


def test_our_own_error_is_never_tried_again(dead, policy):
    for other in (CUT_OFF, dead):
        with pytest.raises(StageError, match="Training diverged"):
            policy.after_exception(None, {0: other, 1: DIVERGED})
    assert count_restarts(policy.work_folder) == 0


def test_a_mistake_in_the_code_is_never_tried_again(policy):
    with pytest.raises(StageError, match="Training failed in a worker: ValueError: no such thing"):
        policy.after_exception(None, {0: CUT_OFF, 1: ValueError("no such thing")})


def test_restarts_that_get_nowhere_come_to_an_end_and_a_new_checkpoint_begins_the_count_anew(dead, policy):
    for step in (100, 200, 300):
        (policy.work_folder / "checkpoints" / f"step-{step:08d}").mkdir()
        policy.after_exception(None, {1: dead})
    policy.after_exception(None, {1: dead})
    with pytest.raises(StageError, match=r"did not get past step 300 in 2 restarts \(train.max_restarts\)"):
        policy.after_exception(None, {1: dead})
    assert count_restarts(policy.work_folder) == 4


def test_a_preemption_that_got_further_begins_the_count_anew(dead, policy):
    for step in (100, 200, 300, 400):
        policy.after_exception(None, {1: dead})
        (policy.work_folder / "checkpoints" / f"step-{step:08d}").mkdir()
        policy.after_exception(None, {1: PreemptedError("asked")})
    assert count_restarts(policy.work_folder) == 8


def test_a_group_without_room_is_told_in_one_sentence():
    from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError

    from components.train.restarts import name_group_failure

    assert name_group_failure(WorkerGroupStartupTimeoutError(4)).message.startswith(
        "4 training workers have had no room"
    )
    assert name_group_failure(DIVERGED) is DIVERGED
    assert "could not be run: ValueError: why" in name_group_failure(ValueError("why")).message
