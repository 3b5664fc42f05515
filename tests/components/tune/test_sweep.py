"""components/tune/sweep.py and runners.py: a sweep in this process, with a training that costs nothing."""

from __future__ import annotations

import errno
import math
import random
from functools import partial

import pytest

from components.errors import StageError
from components.train.device import Hardware
from components.tune.journal import Journal
from components.tune.runners import Slots, plan_slots, run_here
from components.tune.stage import StageConfig, trial_training
from components.tune.sweep import Sweep
from tests.components.tune.fakes import EPOCHS, fake_inherit, fake_train, make_plan, make_settings


def run_sweep(folder, train=fake_train, **tune) -> Sweep:
    settings = make_settings(folder)
    sweep = Sweep(make_plan(**tune), Journal(folder / "trials.jsonl", "owner"), inherit=partial(fake_inherit, settings))
    run_here(sweep, settings, train)
    return sweep


def test_every_trial_ends_and_the_best_one_wins(tmp_path):
    sweep = run_sweep(tmp_path)
    scores = [sweep.metrics(trial)["accuracy"] for trial in sweep.in_order()]
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

    sweep = run_sweep(tmp_path, fragile, retries=0)
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
    slots = plan_slots([Hardware(gpus, cpus)], concurrency, trials)
    assert (slots.count, slots.cpus, slots.gpus) == expected


def test_a_cluster_without_cpus_is_refused():
    with pytest.raises(StageError, match="0 CPUs"):
        plan_slots([Hardware(0, 0)], None, 6)


def test_no_trial_is_given_more_cores_than_one_machine_has():
    machines = [Hardware(0, 8), Hardware(0, 8)]
    assert plan_slots(machines, 1, 6) == Slots(count=1, cpus=8, gpus=0)
    assert plan_slots(machines, 3, 6) == Slots(count=3, cpus=4, gpus=0)


def test_a_trial_runs_its_epochs(tmp_path):
    assert {len(trial.reports) for trial in run_sweep(tmp_path, search="random").in_order()} == {EPOCHS}


def test_a_trial_may_be_given_fewer_epochs_than_the_training(tmp_path):
    sweep = Sweep(make_plan(epochs=3), Journal(tmp_path / "trials.jsonl", "owner"))
    run_here(sweep, make_settings(tmp_path, epochs=EPOCHS), fake_train)
    assert [(trial.state, len(trial.reports)) for trial in sweep.in_order()] == [("finished", 3)] * 6


def test_a_failed_trial_starts_again_from_its_checkpoint_as_often_as_the_spec_says(tmp_path):
    lives = {"001": 2}

    def fragile(job, worker):
        name = job.work_folder.name
        if lives.get(name):
            lives[name] -= 1
            fake_train(job, DyingWorker(worker, 3 if lives[name] else 5))
        return fake_train(job, worker)

    sweep = run_sweep(tmp_path, fragile, retries=2, search="random")
    trial = sweep.trials[1]
    assert (trial.state, trial.failures, len(trial.reports)) == ("finished", 2, EPOCHS)
    assert trial.reason == "RuntimeError: lost"
    epochs = (tmp_path / "ledger.txt").read_text().split("\n")
    assert len(epochs) == len(set(epochs))


class DyingWorker:
    """Breaks when it has reported some epochs."""

    def __init__(self, worker, epochs: int) -> None:
        self.worker, self.epochs = worker, epochs
        self.progress = worker.progress

    def report(self, epoch, metrics):
        self.worker.report(epoch, metrics)
        if epoch >= self.epochs:
            raise RuntimeError("lost")


def test_a_retry_is_remembered_after_a_kill(tmp_path):
    sweep = Sweep(make_plan(retries=1), Journal(tmp_path / "trials.jsonl", "owner"))
    sweep.next_trial()
    sweep.fail(0, "lost")
    again = Sweep(make_plan(retries=1), Journal(tmp_path / "trials.jsonl", "owner"))
    assert again.next_trial().failures == 1
    again.fail(0, "lost twice")
    assert (again.trials[0].state, again.trials[0].reason) == ("failed", "lost twice")


def test_known_good_points_come_first_and_chance_completes_them(tmp_path):
    points = [{"train.learning_rate": 1e-3}, {"train.global_batch_size": 64, "train.learning_rate": 1e-2}]
    sweep = run_sweep(tmp_path, search="random", points=points)
    assert [trial.chosen_by for trial in sweep.in_order()] == ["given"] * 2 + ["random"] * 4
    assert sweep.trials[0].config.keys() == sweep.trials[2].config.keys()
    assert sweep.trials[1].config["train.learning_rate"] == 1e-2


@pytest.mark.parametrize("scheduler", ["hyperband", "median"])
def test_other_schedulers_stop_some_and_spare_the_best(tmp_path, scheduler):
    sweep = run_sweep(tmp_path, search="random", trials=12, scheduler=scheduler)
    assert any(trial.state == "stopped" for trial in sweep.in_order())
    assert sweep.winner().state == "finished"


AIMS = {"metric": ["accuracy", {"name": "loss", "mode": "max"}], "choose": {"max_drop": 1.0, "prefer": "loss"}}


def test_of_several_aims_the_rule_picks_from_the_pareto_set(tmp_path):
    sweep = run_sweep(tmp_path, search="bayesian", trials=8, **AIMS)
    assert len(sweep.pareto()) == 8  # accuracy falls with the loss, and both are to be large
    assert sweep.winner() is max(sweep.in_order(), key=lambda trial: sweep.metrics(trial)["loss"])
    assert [trial.chosen_by for trial in sweep.in_order()] == ["startup"] * 2 + ["model"] * 6


def test_a_trial_whose_aims_are_not_all_known_cannot_win(tmp_path):
    plan = make_plan(epochs=1, trials=2, metric=["accuracy", "parameters"])
    sweep = Sweep(plan, Journal(tmp_path / "trials.jsonl", "owner"))
    for accuracy in (0.9, 0.8):
        trial = sweep.next_trial()
        if accuracy < 0.9:
            sweep.measure(trial.number, {"parameters": 10.0})
            sweep.measure(trial.number, {"parameters": 99.0})
        sweep.report(trial.number, 1, {"accuracy": accuracy})
    assert sweep.winner().number == 1
    assert sweep.metrics(sweep.winner()) == {"accuracy": 0.8, "parameters": 10.0}


PBT = {"search": "random", "scheduler": "pbt", "trials": 8, "pbt": {"interval_epochs": 3}}


def test_a_population_takes_over_from_its_best(tmp_path):
    sweep = run_sweep(tmp_path, **PBT)
    assert [trial.state for trial in sweep.in_order()] == ["finished"] * 8
    taken = [takeover for trial in sweep.in_order() for takeover in trial.takeovers]
    assert {takeover["epoch"] for takeover in taken} == {3, 6}
    assert all(sweep.plan.space.contains(trial.config) for trial in sweep.in_order())
    ledger = (tmp_path / "ledger.txt").read_text().split()
    assert len(ledger) == 2 * 8 * EPOCHS  # no epoch was trained twice
    free = run_sweep_in(tmp_path / "free", search="random", trials=8)
    assert mean_accuracy(sweep) > mean_accuracy(free)


def test_members_of_a_population_leave_a_checkpoint_at_every_epoch():
    train = {"epochs": 9, "checkpoint_every_steps": 100}
    sections = {"task": "image-classification", "model": {"architecture": "mlp"}, "train": train}
    space = {"train.learning_rate": {"log_uniform": [1e-5, 1e-1]}}
    trials = [
        trial_training(StageConfig.model_validate({**sections, "tune": {**tune, "space": space}}))
        for tune in (PBT, {"search": "random", "trials": 8})
    ]
    assert [(one.checkpoint_every_epochs, one.checkpoint_every_steps) for one in trials] == [(1, None), (1, 100)]


def run_sweep_in(folder, **tune) -> Sweep:
    folder.mkdir()
    return run_sweep(folder, **tune)


def mean_accuracy(sweep: Sweep) -> float:
    return sum(trial.reports[EPOCHS]["accuracy"] for trial in sweep.in_order()) / len(sweep.trials)


def test_a_population_in_any_order_of_reports_decides_the_same(tmp_path):
    records = []
    for name, sign in (("up", 1), ("down", -1)):
        sweep = Sweep(make_plan(epochs=6, **PBT), Journal(tmp_path / name / "trials.jsonl", "owner"))
        while live := sorted(iter(sweep.next_trial, None), key=lambda trial: sign * trial.number):
            for trial in live:
                epoch = max(trial.reports, default=0) + 1
                while sweep.report(trial.number, epoch, {"accuracy": 1 / (trial.number + epoch)}):
                    epoch += 1
        records.append([record["exploits"] for record in sweep.journal.read() if record["kind"] == "generation"])
    assert records[0] == records[1] and len(records[0]) == 1


def noisy(job, worker):
    """Only the seed decides: whatever won the search had luck."""
    worker.report(1, {"accuracy": random.Random(f"{job.seed} {job.train.learning_rate}").random()})


def test_finalists_are_repeated_over_seeds_that_did_not_choose_them(tmp_path):
    sweep = run_sweep(tmp_path, noisy, search="random", repeats=3, finalists=2)
    assert sweep.total == 6 + 2 * 3 and sweep.ended == 12
    best = sorted(sweep.searched(), key=lambda trial: -trial.reports[1]["accuracy"])[:2]
    assert sweep.finalists == [trial.number for trial in best]
    repeats = sweep.in_order()[6:]
    assert [(trial.repeat_of, trial.seed) for trial in repeats] == [
        (number, seed) for seed in (1, 2, 3) for number in sweep.finalists
    ]
    assert all(trial.config == sweep.trials[trial.repeat_of].config for trial in repeats)
    means = {number: sum(scores) / 3 for number, scores in sweep.repeated().items()}
    assert sweep.winner().number == max(means, key=means.get)


def test_a_sweep_of_folds_rates_only_trials_with_all_of_them(tmp_path):
    sweep = Sweep(make_plan(epochs=9, folds=3, trials=3), Journal(tmp_path / "trials.jsonl", "owner"))
    for values in ([0.9], [0.5, 0.6, 0.4], [0.3, 0.3, 0.45]):
        trial = sweep.next_trial()
        for fold, value in enumerate(values, start=1):
            sweep.report(trial.number, fold, {"accuracy": value})
    sweep.fail(0, "lost"), sweep.fail(0, "lost")
    assert sweep.winner().number == 2
    assert sweep.metrics(sweep.winner()) == {"accuracy": 0.45}
