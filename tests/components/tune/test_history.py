"""components/tune/history.py: what an earlier sweep tells a new one."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial

import pytest

from components.errors import StageError
from components.tune.history import can_extend, observe_runs, observe_trials, read_sweep, records_to_extend
from components.tune.journal import Journal
from components.tune.runners import run_here
from components.tune.stage import describe_sweep
from components.tune.sweep import Sweep
from tests.components.tune.fakes import SPACE, fake_inherit, fake_train, make_config, make_plan, make_settings


def run_sweep(folder, train=fake_train, begin=(), **tune) -> Sweep:
    folder.mkdir(exist_ok=True)
    plan, settings = make_plan(**tune), make_settings(folder)
    journal = Journal(folder / "trials.jsonl", "owner", describe_sweep(make_config(**tune), plan), begin)
    sweep = Sweep(plan, journal, inherit=partial(fake_inherit, settings))
    run_here(sweep, settings, train)
    return sweep


def recorded(folder, **tune):
    return read_sweep(run_sweep(folder, **tune).journal.path)


def about(**tune):
    return describe_sweep(make_config(**tune), make_plan(**tune))


def test_a_journal_alone_tells_the_sweep(tmp_path):
    sweep = run_sweep(tmp_path, scheduler="asha", search="random")
    read = read_sweep(sweep.journal.path)
    assert read.complete and read.state.trials == sweep.trials
    assert read.state.winner().number == sweep.winner().number
    assert read.about["tune"]["scheduler"] == "asha"


def test_a_torn_last_line_is_left_out_and_the_file_untouched(tmp_path):
    path = run_sweep(tmp_path).journal.path
    path.write_bytes(path.read_bytes()[:-9])
    before = path.read_bytes()
    assert not read_sweep(path).complete
    assert path.read_bytes() == before


def test_an_empty_journal_is_refused(tmp_path):
    (tmp_path / "trials.jsonl").write_text("")
    with pytest.raises(StageError, match="says nothing about its sweep"):
        read_sweep(tmp_path / "trials.jsonl")


@pytest.mark.parametrize("scheduler", [None, "asha"])
def test_extended_by_a_delta_a_sweep_runs_exactly_that_and_equals_the_longer_one(tmp_path, scheduler):
    tune = {"search": "random", "scheduler": scheduler}
    short = recorded(tmp_path / "short", trials=4, **tune)
    assert can_extend(short, about(trials=7, **tune))
    extended = run_sweep(tmp_path / "extended", begin=records_to_extend(short), trials=7, **tune)
    whole = run_sweep(tmp_path / "whole", trials=7, **tune)
    assert [asdict(t) | TIMES for t in extended.in_order()] == [asdict(t) | TIMES for t in whole.in_order()]
    trained = {line.split()[0] for line in (tmp_path / "extended" / "ledger.txt").read_text().splitlines()}
    assert trained == {"004", "005", "006"}


TIMES = {"started_s": 0, "ended_s": 0}


@pytest.mark.parametrize(
    "change",
    [{"trials": 4}, {"trials": 7, "search": "bayesian"}, {"trials": 7, "max_epochs": 2}, {"trials": 7, "seed": 1}],
)
def test_what_asks_another_question_is_no_extension(tmp_path, change):
    short = recorded(tmp_path, trials=4, search="random")
    assert not can_extend(short, about(**{"search": "random", **change}))


def test_an_unfinished_sweep_and_a_population_are_not_extended(tmp_path):
    sweep = Sweep(make_plan(trials=4), Journal(tmp_path / "trials.jsonl", "owner", about(trials=4)))
    sweep.next_trial()
    assert not can_extend(read_sweep(sweep.journal.path), about(trials=7))
    population = {"search": "random", "scheduler": "pbt"}
    assert not can_extend(recorded(tmp_path / "pbt", trials=4, **population), about(trials=7, **population))


NARROW = {
    "train.learning_rate": {"log_uniform": [1e-5, 1e-3]},
    "model.architecture": {"choice": ["mlp", "cnn"]},
    "train.global_batch_size": {"choice": [32, 64]},
}


def test_trials_that_lie_in_another_space_are_told_and_counted(tmp_path):
    earlier = recorded(tmp_path, search="random", trials=12, scheduler="asha")
    plan = make_plan(space=NARROW)
    records, outside = observe_trials(earlier, plan, "before")
    inside = [trial for trial in earlier.state.in_order() if trial.config["train.learning_rate"] <= 1e-3]
    assert 0 < len(records) == len(inside) and outside == 12 - len(inside)
    assert records[0]["config"] == {
        "train.learning_rate": inside[0].config["train.learning_rate"],
        "model.architecture": inside[0].config["model"]["architecture"],
        "train.global_batch_size": inside[0].config["train.global_batch_size"],
    }
    assert [record["state"] for record in records] == [trial.state for trial in inside]


def test_trials_of_another_base_do_not_lie_in_the_space(tmp_path):
    earlier = recorded(tmp_path, search="random", trials=3)
    fixed = make_plan(space={"train.learning_rate": SPACE["train.learning_rate"]})
    records, outside = observe_trials(earlier, fixed, "before")
    # Only an MLP with batches of 64 is what this plan's own spec would train.
    base = {"model": {"architecture": "mlp"}, "train.global_batch_size": 64}
    same = [trial for trial in earlier.state.in_order() if base.items() <= trial.config.items()]
    assert (len(records), outside) == (len(same), 3 - len(same))


def test_a_sweep_told_enough_lets_the_model_choose_at_once_and_remembers(tmp_path):
    records, _ = observe_trials(recorded(tmp_path / "old", search="random", trials=12), make_plan(space=NARROW), "old")
    sweep = run_sweep(tmp_path / "new", begin=records, space=NARROW)
    assert {trial.chosen_by for trial in sweep.in_order()} == {"model"}
    assert len(read_sweep(sweep.journal.path).state.observed) == len(records)


def test_past_runs_are_read_by_the_names_they_have():
    runs = [
        {"name": "good", "params": {"lr": "0.0001", "train.global_batch_size": "32", "model.architecture": "cnn"},
         "metrics": {"val_acc": 0.9}},
        {"name": "outside", "params": {"lr": "5", "train.global_batch_size": "32", "model.architecture": "cnn"},
         "metrics": {"val_acc": 0.9}},
        {"name": "without the metric", "params": {"lr": "0.0001", "train.global_batch_size": "32",
         "model.architecture": "cnn"}, "metrics": {}},
        {"name": "without a parameter", "params": {"lr": "0.0001"}, "metrics": {"val_acc": 0.9}},
    ]  # fmt: skip
    records, outside = observe_runs(runs, make_plan(space=NARROW), "val_acc", {"train.learning_rate": "lr"}, "old")
    assert outside == 3
    assert records[0]["config"]["train.learning_rate"] == 1e-4
    assert records[0]["values"] == {9: 0.9} and records[0]["source"] == "old good"
