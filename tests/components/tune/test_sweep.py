"""components/tune/sweep.py and runners.py: a sweep in this process, with a training that costs nothing."""

from __future__ import annotations

import errno
import math

import pytest

from components.errors import StageError
from components.tune.journal import Journal
from components.tune.runners import plan_slots, run_here
from components.tune.sweep import Sweep
from tests.components.tune.fakes import EPOCHS, fake_train, make_plan, make_settings


def run_sweep(folder, train=fake_train, **tune) -> Sweep:
    sweep = Sweep(make_plan(**tune), Journal(folder / "trials.jsonl", "owner"))
    run_here(sweep, make_settings(folder), train)
    return sweep


def test_every_trial_ends_and_the_best_one_wins(tmp_path):
    sweep = run_sweep(tmp_path)
    scores = [trial.best("accuracy", "max")["accuracy"] for trial in sweep.in_order()]
    assert [trial.state for trial in sweep.in_order()] == ["finished"] * 6
    assert sweep.winner().number == scores.index(max(scores))


def test_of_equal_trials_the_earlier_one_wins(tmp_path):
    def constant(job, worker):
        worker.report(1, {"accuracy": 0.5})

    assert run_sweep(tmp_path, constant).winner().number == 0


def test_asha_stops_the_bad_half_way_and_spares_their_epochs(tmp_path):
    sweep = run_sweep(tmp_path, search="random", trials=9, scheduler="asha")
    stopped = [trial for trial in sweep.in_order() if trial.state == "stopped"]
    assert stopped
    assert all(len(trial.reports) in (2, 6) for trial in stopped)
    assert sweep.winner().state == "finished"
    assert sum(trial.state == "finished" for trial in sweep.in_order()) + len(stopped) == 9


def test_a_trial_at_its_last_epoch_is_finished_not_stopped(tmp_path):
    sweep = Sweep(make_plan(epochs=2, scheduler="asha"), Journal(tmp_path / "trials.jsonl", "owner"))
    for accuracy in (0.9, 0.1):
        trial = sweep.next_trial()
        assert sweep.report(trial.number, 1, {"accuracy": accuracy})
        assert not sweep.report(trial.number, 2, {"accuracy": accuracy})
        assert trial.state == "finished"


def test_a_failing_trial_is_recorded_and_the_others_go_on(tmp_path):
    def fragile(job, worker):
        if job.work_folder.name == "001":
            raise MemoryError("no room")
        return fake_train(job, worker)

    sweep = run_sweep(tmp_path, fragile)
    assert [trial.state for trial in sweep.in_order()] == ["finished", "failed"] + ["finished"] * 4
    assert sweep.trials[1].reason == "MemoryError: no room"
    assert "fragile" in (tmp_path / "trials" / "001" / "error.txt").read_text()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_non_finite_metric_fails_its_trial(tmp_path, bad):
    def diverging(job, worker):
        worker.report(1, {"accuracy": 0.1, "loss": 1.0})
        worker.report(2, {"accuracy": 0.9, "loss": bad})

    sweep = run_sweep(tmp_path, diverging, trials=1)
    assert sweep.trials[0].state == "failed"
    assert sweep.trials[0].reason == f"loss is {bad} at epoch 2"
    assert sweep.winner() is None


def test_a_full_disk_ends_the_sweep_and_blames_no_trial(tmp_path):
    def full(job, worker):
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(StageError, match="is full"):
        run_sweep(tmp_path, full)
    assert [trial.state for trial in run_sweep(tmp_path).in_order()] == ["finished"] * 6


def test_checkpoints_of_ended_trials_are_removed(tmp_path):
    run_sweep(tmp_path)
    assert not any((tmp_path / "trials").iterdir())


def test_an_epoch_told_twice_is_decided_once(tmp_path):
    sweep = Sweep(make_plan(scheduler="asha"), Journal(tmp_path / "trials.jsonl", "owner"))
    sweep.next_trial()
    assert sweep.report(0, 1, {"accuracy": 0.5})
    assert sweep.report(0, 1, {"accuracy": 0.1})
    assert sweep.trials[0].reports == {1: {"accuracy": 0.5}}


def test_a_sweep_takes_up_unfinished_trials_first(tmp_path):
    sweep = Sweep(make_plan(), Journal(tmp_path / "trials.jsonl", "owner"))
    sweep.next_trial(), sweep.next_trial()
    sweep.finish(0)
    again = Sweep(make_plan(), Journal(tmp_path / "trials.jsonl", "owner"))
    assert [again.next_trial().number for _ in range(5)] == [1, 2, 3, 4, 5]
    assert again.next_trial() is None
    assert again.running == 5


@pytest.mark.parametrize(
    ("cpus", "gpus", "concurrency", "trials", "expected"),
    [
        (2, 0, None, 6, (2, 1, 0)),
        (2, 0, 1, 6, (1, 2, 0)),
        (2, 0, 8, 6, (2, 1, 0)),
        (8, 0, None, 3, (3, 2, 0)),
        (16, 2, None, 6, (2, 8, 1)),
        (16, 2, 1, 6, (1, 16, 1)),
    ],
)
def test_slots_divide_the_cluster(cpus, gpus, concurrency, trials, expected):
    slots = plan_slots(cpus, gpus, concurrency, trials)
    assert (slots.count, slots.cpus, slots.gpus) == expected


def test_a_cluster_without_cpus_is_refused():
    with pytest.raises(StageError, match="0 CPUs"):
        plan_slots(0, 0, None, 6)


def test_a_trial_runs_its_epochs(tmp_path):
    assert {len(trial.reports) for trial in run_sweep(tmp_path, search="random").in_order()} == {EPOCHS}


def test_a_trial_may_be_given_fewer_epochs_than_the_training(tmp_path):
    sweep = Sweep(make_plan(epochs=3), Journal(tmp_path / "trials.jsonl", "owner"))
    run_here(sweep, make_settings(tmp_path, epochs=EPOCHS), fake_train)
    assert [(trial.state, len(trial.reports)) for trial in sweep.in_order()] == [("finished", 3)] * 6
