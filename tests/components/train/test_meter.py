"""The clock of the steps, told to the second by hand."""

from __future__ import annotations

import pytest

from components.train import meter
from components.train.meter import Meter


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass only when a test says so."""
    now = [100.0]
    monkeypatch.setattr(meter.time, "monotonic", lambda: now[0])
    return now


def run_steps(running: Meter, clock: list[float], steps: int, step_s: float, wait_s: float = 0.0) -> None:
    for _ in range(steps):
        with running.waiting():
            clock[0] += wait_s
        clock[0] += step_s - wait_s
        running.flops += 1e9
        running.count_step()


def test_the_first_step_and_validations_do_not_count(clock):
    running = Meter(total_steps=100, batch_size=8, done_before=0, seq_len=4)
    with running.running():
        run_steps(running, clock, 1, step_s=30)  # compiles
        run_steps(running, clock, 4, step_s=0.5)
    clock[0] += 1000  # validates
    pace = running.pace(5)
    assert pace["tokens_per_s"] == pytest.approx(8 * 4 / 0.5)
    assert pace["eta_s"] == pytest.approx(95 * (30 + 2 + 1000) / 5)


def test_waiting_and_utilisation_are_shares_of_the_time_of_the_steps(clock):
    running = Meter(total_steps=100, batch_size=8, done_before=0, peak_flops=10e9)
    with running.running():
        run_steps(running, clock, 5, step_s=0.5, wait_s=0.1)
        running.pause()
        clock[0] += 7  # writes a checkpoint
        running.go_on()
    pace = running.pace(5)
    assert (pace["data_wait"], pace["mfu"]) == (pytest.approx(0.2), pytest.approx(0.2))
    assert pace["samples_per_s"] == pytest.approx(16)


def test_before_the_second_step_there_is_only_the_overall_pace(clock):
    running = Meter(total_steps=100, batch_size=8, done_before=10, peak_flops=1.0)
    with running.running():
        run_steps(running, clock, 1, step_s=2)
        assert running.pace(11) == {"samples_per_s": pytest.approx(4), "eta_s": pytest.approx(178)}


def test_the_own_time_is_the_middle_one_and_begins_anew():
    running = Meter(total_steps=1, batch_size=1, done_before=0)
    running.own_s.extend([1.0, 2.0, 50.0])
    assert (running.take_own_s(), running.take_own_s()) == (2.0, 0.0)
