"""What is said of losses that leap and of a worker that the others wait for."""

from __future__ import annotations

import time
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch

from components.train.loop import train
from components.train.meter import Meter
from components.train.watch import SPIKES_TOLD, Watch, find_straggler, look_for_stragglers, own_work
from tests.components.train.jobs import FakeWorker, make_job


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def leap(monkeypatch, *steps):
    """Makes the loss of some steps a thousandfold; a constant factor leaves Adam's step as it was, but for one."""
    from components.train import loop

    calls, whole = iter(range(10_000)), loop.batch_loss
    monkeypatch.setattr(loop, "batch_loss", lambda *given: whole(*given) * (1000.0 if next(calls) in steps else 1.0))


def test_a_loss_that_leaps_is_told_with_its_rows_and_counted(digits, tmp_path, monkeypatch):
    leap(monkeypatch, 50)
    worker = FakeWorker()
    result = train(make_job(digits, tmp_path, epochs=8), worker)
    assert result.facts["loss_spikes"] == 1
    assert result.facts["rollbacks"] == result.facts["skipped_steps"] == 0
    (told,) = worker.warnings
    assert "at step 51," in told and "(rows " in told and "worker 0" in told


def test_after_a_few_spikes_the_rest_is_only_counted(digits, tmp_path, monkeypatch):
    leap(monkeypatch, *range(40, 47))
    worker = FakeWorker()
    result = train(make_job(digits, tmp_path, epochs=8), worker)
    assert result.facts["loss_spikes"] == 7
    assert len(worker.warnings) == SPIKES_TOLD
    assert worker.warnings[-1].endswith("only counted.")


@pytest.mark.parametrize(
    ("times", "slow"),
    [
        ([0.10, 0.11, 0.10, 0.16], 3),
        ([0.10, 0.11, 0.10, 0.14], None),
        ([0.20, 0.10], 0),
        ([0.002, 0.001], None),  # within the noise of a clock
        ([0.0, 0.0], None),  # nothing measured
    ],
)
def test_a_straggler_takes_half_as_long_again_as_the_middle_worker(times, slow):
    assert find_straggler(times) == slow


@dataclass
class TwoWorkers:
    """A group whose other member needs `other_s` for its part of a step."""

    other_s: float
    rank: int = 1
    world_size: int = 2
    device: str = "cpu"

    def gather(self, tensor):
        return torch.stack([torch.full_like(tensor, self.other_s), tensor])


def test_a_worker_that_is_slow_twice_in_a_row_is_named_once_and_by_itself():
    meter, worker = Meter(total_steps=8, batch_size=8, done_before=0), FakeWorker(rank=1, world_size=2)
    session = SimpleNamespace(group=TwoWorkers(other_s=0.01), watch=Watch(), meter=meter, worker=worker, facts={})
    told_after = []
    for own_s in (0.03, 0.0, 0.03, 0.03, 0.03):
        with own_work(session):
            time.sleep(own_s)
        look_for_stragglers(session)
        told_after.append(len(worker.warnings))
    assert told_after == [0, 0, 0, 1, 1]
    assert session.facts == {"straggler": 1}
    (told,) = worker.warnings
    assert told.startswith("Worker 1 on ") and "the others about 10 ms" in told
