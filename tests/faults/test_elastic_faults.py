"""Rows A12 and A13 of the fault matrix: workers that die are replaced, and training goes on with another number."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file

from benchmarks.elastic import INTERVAL
from components.artifacts import Artifact
from components.errors import StageError
from components.train.failures import count_restarts
from components.train.launch import launch
from components.train.loop import train
from tests.builders import make_context
from tests.components.train.jobs import FakeWorker, make_job
from tests.components.train.ranks import gather_state, load_as_it_is, run_ranks, train_ranks
from tests.faults.conftest import FULL
from tests.faults.ray_workers import strike_workers

pytestmark = [pytest.mark.faults, pytest.mark.usefixtures("one_thread")]

ROOT = Path(__file__).resolve().parents[2]
SIGNALS = (signal.SIGSEGV, signal.SIGKILL)
PLAIN = {"architecture": "mlp", "hidden_sizes": [16], "dropout": 0.0}


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_A13_weights_and_moments_are_divided_anew_bit_for_bit(stage: int, digits: Artifact, tmp_path: Path) -> None:
    model = {"architecture": "cnn", "channels": [4]}  # its running statistics must come along
    job = make_job(digits, tmp_path / "job", model, workers=4, zero={"stage": stage})
    for world_size in (2, 1, 4, 2):
        assert run_ranks(gather_state, job, world_size, tmp_path) == [0] * world_size
    states = [load_file(job.work_folder / "state" / f"{number}.safetensors") for number in range(7)]
    for before, after in zip(states[0::2], states[1::2], strict=False):
        assert before.keys() == after.keys()
        assert all(before[name].equal(after[name]) for name in before)
    assert states[-1]["steps"].tolist() == [8.0]


def test_A13_control_deepspeed_alone_refuses_another_number_of_workers(digits: Artifact, tmp_path: Path) -> None:
    job = make_job(digits, tmp_path / "job", PLAIN, workers=2, zero={"stage": 2})
    assert run_ranks(gather_state, job, 2, tmp_path) == [0, 0]
    assert run_ranks(load_as_it_is, job, 1, tmp_path) == [0]


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_A13_the_loss_is_that_of_one_worker_at_every_later_step(stage: int, digits: Artifact, tmp_path: Path) -> None:
    """In fp32 without dropout only sums are added in another order; every row is trained when it would have been."""
    values = {"epochs": 4, "learning_rate": 1e-2, "validate_every_steps": 2}
    whole = train(make_job(digits, tmp_path / "whole", PLAIN, **values), FakeWorker())
    job = make_job(digits, tmp_path / "job", PLAIN, workers=4, zero={"stage": stage}, **values)
    for world_size, stop_at in ((1, 3), (2, 6), (4, 9), (2, 12), (1, 0)):
        train_ranks(job, world_size, tmp_path, stop_at)
    parts = train(job, FakeWorker())
    assert [entry["step"] for entry in parts.history] == list(range(2, 33, 2))
    for entry, expected in zip(parts.history, whole.history, strict=True):
        for name in ("train_loss", "loss"):
            assert entry[name] == pytest.approx(expected[name], abs=1e-3)


@pytest.mark.skipif(not FULL, reason="test_stuck_worker_faults.py lets workers die without Ray; full counts only")
def test_A12_a_worker_that_dies_is_replaced_and_changes_nothing(
    ray_session: str, digits: Artifact, tmp_path: Path, repeats: Callable[[int, int], int]
) -> None:
    """By SIGSEGV and SIGKILL, one after the other, in a training of a fixed number of workers."""
    signals = SIGNALS[: repeats(1, len(SIGNALS))]
    values = {"workers": 2, "zero": {"stage": 2}, "max_steps": 600, "validate_every_steps": 50}
    whole, struck = (make_job(digits, tmp_path / name, PLAIN, **values) for name in ("whole", "struck"))
    train_ranks(whole, 2, tmp_path)
    context = make_context(tmp_path, "train", debug=False)
    strike_workers(struck.work_folder, signals)
    result, expected = launch(struck, context), train(whole, FakeWorker())
    assert result.facts["restarts"] == len(signals)
    assert result.weights.read_bytes() == expected.weights.read_bytes()
    assert result.history == expected.history


def test_A12_an_error_of_the_training_itself_is_not_tried_again(
    ray_session: str, digits: Artifact, tmp_path: Path
) -> None:
    values = {"learning_rate": 1e30, "gradient_clipping": 0, "optimizer": {"name": "sgd"}}
    job = make_job(digits, tmp_path / "job", PLAIN, workers=2, **values)
    with pytest.raises(StageError, match="Training diverged"):
        launch(job, make_context(tmp_path, "train", debug=False))
    assert count_restarts(job.work_folder) == 0


@pytest.mark.skipif(not FULL, reason="a lost machine takes minutes; full counts only")
def test_a_lost_machine_costs_at_most_one_interval_and_is_used_when_it_returns(tmp_path: Path) -> None:
    """Two nodes, one is taken away and given back, as `make bench-elastic` does ten times and says for how long."""
    done = subprocess.run(
        [sys.executable, "benchmarks/elastic.py", str(tmp_path)],
        cwd=ROOT, env={**os.environ, "FAULTS": "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    (fault,) = json.loads(done.stdout.splitlines()[-1])["faults"]
    print(f"training stood still for {fault['pause_s']} s")
    assert fault["lost_steps"] <= INTERVAL
    assert fault["regrown_s"] is not None
