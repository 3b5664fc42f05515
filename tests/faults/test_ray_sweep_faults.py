"""Faults of a sweep on a real Ray: poisoned processes, killed workers, and what plain Ray Tune makes of the same.

Rows B1 to B5 and B7 of the fault matrix. The trials cost nothing; actors, processes and records are the real ones.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from components.artifacts import write_artifact
from components.tune.history import can_extend, read_sweep, records_to_extend
from components.tune.journal import Journal
from components.tune.runners import run_here
from components.tune.stage import StageConfig, describe_sweep, run
from components.tune.sweep import Sweep
from tests.components.tune.fakes import fake_inherit, fake_train, make_config, make_context, make_plan, make_settings
from tests.faults.conftest import FULL

pytestmark = pytest.mark.faults

LOG_MIB = 1024 if FULL else 20

RATES = {"train.learning_rate": {"grid": [1e-5, 1e-4, 1e-3, 2e-3, 1e-2, 2e-2, 1e-1]}}


def run_grid(folder: Path, train, **tune):
    """A grid of seven on Ray (or, with `debug`, here); gives trials.json."""
    folder.mkdir()
    context = replace(make_context(folder), debug=tune.pop("debug", False))
    with write_artifact(str(folder / "dataset"), "dataset", {}, context) as draft:
        draft.write_json("schema.json", {})
    sections = {"model": {"architecture": "mlp"}, "train": {"epochs": 3}}
    values = {"search": "grid", "space": RATES, "retries": 0, **tune}
    config = StageConfig.model_validate({"task": "image-classification", **sections, "tune": values})
    return run(config, {"dataset": draft.artifact.ref}, str(folder / "sweep"), context, train=train).read_json(
        "trials.json"
    )


class Unpicklable(Exception):
    """An error that cannot cross a process."""

    def __init__(self) -> None:
        super().__init__("cannot travel")
        self.lock = threading.Lock()


def poisoned(job, worker):
    """Each trial but 0 and 6 breaks in its own way."""
    number = int(job.work_folder.name)
    if number == 1:
        os.kill(os.getpid(), signal.SIGSEGV)
    if number == 2:
        time.sleep(1000)
    if number == 3:
        raise Unpicklable
    if number == 4:
        sys.exit(3)
    if number == 5:
        for _ in range(LOG_MIB):
            sys.stdout.write("x" * (1 << 20) + "\n")
        limit = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (1 << 30, limit[1]))
        try:
            bytearray(8 << 30)
        finally:
            resource.setrlimit(resource.RLIMIT_AS, limit)
    return fake_train(job, worker)


REASONS = {1: "process died", 2: "did not report for 6 s", 3: "cannot travel", 4: "SystemExit: 3", 5: "MemoryError"}


def test_B4_poisoned_processes_are_named_and_leave_the_others_as_they_are(tmp_path, ray_session):
    control = run_grid(tmp_path / "control", fake_train, debug=True)
    trials = run_grid(tmp_path / "poisoned", poisoned, report_timeout_s=6)
    for number, reason in REASONS.items():
        assert trials[number]["state"] == "failed" and reason in trials[number]["reason"], trials[number]
    assert [trials[number] for number in (0, 6)] == [control[number] for number in (0, 6)]


@pytest.fixture
def few_processes() -> Iterator[Path]:
    """A control group in which at most 300 tasks may run."""
    group = Path(f"/sys/fs/cgroup/pids/penstock-{os.getpid()}")
    try:
        group.mkdir()
        (group / "pids.max").write_text("300")
    except OSError as error:
        pytest.skip(f"no control group with a limit of processes can be made here: {error}")
    yield group
    deadline_s = time.monotonic() + 60
    while group.exists():
        # A process that is just ending cannot be moved, and keeps its group for a moment.
        with suppress(OSError):
            for pid in (group / "cgroup.procs").read_text().split():
                (group.parent / "cgroup.procs").write_text(pid)
            group.rmdir()
        assert time.monotonic() < deadline_s, f"{group} still has a process"
        time.sleep(0.05)


def test_B4_a_fork_bomb_is_named_and_nothing_of_it_is_left(tmp_path, ray_session, few_processes):
    def bomb(job, worker):
        if int(job.work_folder.name) == 1:
            (few_processes / "cgroup.procs").write_text(str(os.getpid()))
            while True:
                if os.fork() == 0:
                    time.sleep(1000)
        return fake_train(job, worker)

    control = run_grid(tmp_path / "control", fake_train, debug=True)
    trials = run_grid(tmp_path / "bombed", bomb)
    assert trials[1]["state"] == "failed" and "Resource temporarily unavailable" in trials[1]["reason"]
    del trials[1], control[1]
    assert trials == control
    assert len((few_processes / "cgroup.procs").read_text().split()) <= 1  # the trial's own process, if it lives yet


OPTUNA_LOOP = """
import os, sys, time
import optuna
optuna.logging.set_verbosity(optuna.logging.ERROR)
storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(sys.argv[1]))
sampler = optuna.samplers.RandomSampler()
study = optuna.create_study(storage=storage, study_name="s", load_if_exists=True, sampler=sampler)
def objective(trial):
    x = trial.suggest_float("x", 0, 1)
    if sys.argv[2] == "poison" and trial.number == 1:
        sys.exit(3)
    for step in range(10):
        trial.report(x, step)
        time.sleep(0.05)
    return x
study.optimize(objective, n_trials=4 - sum(trial.state.is_finished() for trial in study.trials), catch=Exception)
"""


def optuna_loop(journal: Path, *arguments: str) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", OPTUNA_LOOP, str(journal), *arguments])


def optuna_trials(journal: Path) -> list:
    import optuna

    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(journal)))
    return optuna.load_study(study_name="s", storage=storage).trials


def test_B4_control_one_poisoned_trial_ends_the_loop_of_plain_optuna(tmp_path):
    assert optuna_loop(tmp_path / "journal", "poison").wait(60) == 3
    assert len(optuna_trials(tmp_path / "journal")) == 2


def test_B1_control_plain_optuna_loses_the_trial_that_a_kill_met(tmp_path):
    loop = optuna_loop(tmp_path / "journal", "sleep")
    while not (tmp_path / "journal").exists() or "intermediate_value" not in (tmp_path / "journal").read_text():
        assert loop.poll() is None
        time.sleep(0.02)
    loop.kill()
    loop.wait()
    assert optuna_loop(tmp_path / "journal", "sleep").wait(60) == 0
    states = [trial.state.name for trial in optuna_trials(tmp_path / "journal")]
    # The steps of the killed one are lost, its trial runs for ever, and another configuration was tried in its place.
    assert states == ["RUNNING", *["COMPLETE"] * 4]


def test_B1_a_killed_trial_process_goes_on_from_its_checkpoint(tmp_path, ray_session):
    def mortal(job, worker):
        marker = job.work_folder / "killed"
        if int(job.work_folder.name) % 3 == 0 and not marker.exists():
            report = worker.report

            def die(epoch, metrics):
                report(epoch, metrics)
                if epoch == 2:
                    marker.touch()
                    os.kill(os.getpid(), signal.SIGKILL)

            worker.report = die
        return fake_train(job, worker)

    control = run_grid(tmp_path / "control", fake_train, debug=True)
    trials = run_grid(tmp_path / "killed", mortal, retries=1)
    course = json.loads((tmp_path / "killed" / "sweep" / "course.json").read_text())
    assert [trial["failures"] for trial in course] == [1, 0, 0, 1, 0, 0, 1]
    assert [trial["metrics"] for trial in trials] == [trial["metrics"] for trial in control]
    epochs = (tmp_path / "killed" / "work" / "trials" / "ledger.txt").exists()
    assert not epochs  # the ledger lies beside the trials, in the work folder
    lines = (tmp_path / "killed" / "work" / "ledger.txt").read_text().split("\n")
    assert len(lines) == len(set(lines))  # no epoch was trained twice


def extended(folder: Path, begin=(), **tune) -> Sweep:
    folder.mkdir(exist_ok=True)
    plan, settings = make_plan(**tune), make_settings(folder)
    journal = Journal(folder / "trials.jsonl", "owner", describe_sweep(make_config(**tune), plan), begin)
    sweep = Sweep(plan, journal, inherit=partial(fake_inherit, settings))
    run_here(sweep, settings, fake_train)
    return sweep


@pytest.mark.parametrize("search", ["random", "bayesian"])
def test_B7_raised_trials_run_exactly_the_delta(tmp_path, search):
    short = read_sweep(extended(tmp_path / "short", search=search, trials=5).journal.path)
    plan = {"search": search, "trials": 9}
    assert can_extend(short, describe_sweep(make_config(**plan), make_plan(**plan)))
    longer = extended(tmp_path / "longer", records_to_extend(short), **plan)
    trained = {line.split()[0] for line in (tmp_path / "longer" / "ledger.txt").read_text().splitlines()}
    assert trained == {f"{number:03d}" for number in range(5, 9)}
    assert longer.ended == 9


def test_B7_less_room_on_resume_starves_no_trial(tmp_path, ray_session):
    """The first start has room for two trials and is ended; the second gets one core."""
    folder = tmp_path / "work"
    folder.mkdir()
    sweep = Sweep(make_plan(epochs=2), Journal(folder / "trials.jsonl", "owner"))
    sweep.next_trial(), sweep.next_trial()
    from components.tune.ray_runner import run_on_ray

    again = Sweep(make_plan(epochs=2), Journal(folder / "trials.jsonl", "owner"))
    run_on_ray(again, make_settings(folder, epochs=2), fake_train, concurrency=1)
    assert [trial.state for trial in again.in_order()] == ["finished"] * 6


@pytest.fixture(scope="module")
def plain_tune(tmp_path_factory, ray_session):
    """A finished experiment of Ray Tune as it is shipped."""
    import ray
    from ray import tune

    if not ray.is_initialized():
        ray.init(address=ray_session, log_to_driver=False)
    folder = tmp_path_factory.mktemp("plain")
    config = tune.RunConfig(name="plain", storage_path=str(folder), verbose=0)
    tuner = tune.Tuner(plain_trial, param_space={"x": tune.uniform(0, 1)}, run_config=config)
    tuner.fit()
    return folder / "plain"


def plain_trial(config):
    from ray import tune

    tune.report({"score": config["x"]})


def test_B7_control_plain_ray_tune_takes_no_other_number_of_trials(plain_tune):
    from ray import tune

    with pytest.raises(TypeError):
        tune.Tuner.restore(str(plain_tune), plain_trial, tune_config=tune.TuneConfig(num_samples=3))
    assert len(tune.Tuner.restore(str(plain_tune), plain_trial).fit()) == 1


def test_B2_control_plain_ray_tune_is_lost_with_one_torn_file(plain_tune):
    from ray import tune

    (plain_tune / "tuner.pkl").write_bytes(b"")
    with pytest.raises(EOFError):
        tune.Tuner.restore(str(plain_tune), plain_trial)


def test_B3_control_a_restarted_sampler_alone_does_not_go_on_where_it_was(tmp_path):
    """Optuna's seeded sampler, a new one after five trials: what a restart without our replay would do."""
    import optuna

    def suggestions(restart: bool) -> list[float]:
        study = optuna.create_study(
            sampler=optuna.samplers.TPESampler(seed=0, n_startup_trials=3), direction="maximize"
        )
        for number in range(9):
            if restart and number == 5:
                study.sampler = optuna.samplers.TPESampler(seed=0, n_startup_trials=3)
            trial = study.ask()
            study.tell(trial, -((trial.suggest_float("x", 0, 1) - 0.3) ** 2))
        return [trial.params["x"] for trial in study.trials]

    assert suggestions(restart=False)[:5] == suggestions(restart=True)[:5]
    assert suggestions(restart=False)[5:] != suggestions(restart=True)[5:]


MANY = """
import json, resource, sys, time
from pathlib import Path
from components.tune.journal import Journal
from components.tune.sweep import Sweep
from tests.components.tune.fakes import make_plan

folder, trials = Path(sys.argv[1]), int(sys.argv[2])
began = time.monotonic()
sweep = Sweep(make_plan(epochs=1, search="random", trials=trials), Journal(folder / "trials.jsonl", "owner"))
resumed_s, kib = time.monotonic() - began, []
while (trial := sweep.next_trial()) is not None:
    sweep.report(trial.number, 1, {"accuracy": trial.config["train.learning_rate"]})
    if trial.number % (trials // 10) == 0:
        kib.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
print(json.dumps({"resumed_s": resumed_s, "kib": kib, "ended": sweep.ended}))
"""


def many_trials(folder: Path, trials: int) -> dict:
    command = [sys.executable, "-c", MANY, str(folder), str(trials)]
    root = Path(__file__).resolve().parents[2]
    return json.loads(subprocess.run(command, cwd=root, capture_output=True, check=True, text=True).stdout)


def test_B5_ten_thousand_trials_stay_small_and_resume_quickly(tmp_path, repeats):
    trials = repeats(1_000, 10_000)
    first, second = many_trials(tmp_path, trials), many_trials(tmp_path, trials)
    assert first["ended"] == second["ended"] == trials
    assert (tmp_path / "trials.jsonl").stat().st_size < trials * 20_000
    assert (first["kib"][-1] - first["kib"][1]) / (0.8 * trials) < 10
    assert second["resumed_s"] < 30


MANY_ON_RAY = """
import json, sys, threading, time
from pathlib import Path
import psutil
from components.tune import ray_runner
from components.tune.journal import Journal
from components.tune.sweep import Sweep
from tests.components.tune.fakes import fake_train, make_plan, make_settings

folder, trials, ray_runner.TRIALS_PER_RUN = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[2]) // 10
began = time.monotonic()
sweep = Sweep(make_plan(epochs=1, search="random", trials=trials), Journal(folder / "trials.jsonl", "owner"))
resumed_s, lowest_kib = time.monotonic() - began, {}

def watch():
    while True:
        time.sleep(0.05)
        try:
            tenth = 10 * sweep.ended // trials
        except RuntimeError:  # a trial was added while they were counted
            continue
        kib = psutil.Process().memory_info().rss / 1024
        lowest_kib[tenth] = min(kib, lowest_kib.get(tenth, kib))

threading.Thread(target=watch, daemon=True).start()
if sweep.ended < trials:
    ray_runner.run_on_ray(sweep, make_settings(folder, epochs=1), fake_train, concurrency=2)
ends = [record["trial"] for record in sweep.journal.read() if record["kind"] == "end"]
print(json.dumps({"resumed_s": resumed_s, "kib": lowest_kib, "ends": sorted(ends) == list(range(trials))}))
"""


def many_on_ray(folder: Path, trials: int) -> dict:
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", MANY_ON_RAY, str(folder), str(trials)], cwd=root, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.skipif(not FULL, reason="10,000 trials on a real Ray take up to an hour; full counts only")
@pytest.mark.timeout(3 * 3600)
def test_B5_ten_thousand_trials_on_ray_stay_small_and_resume_quickly(tmp_path, ray_session, repeats):
    trials = repeats(10_000, 10_000)
    first, second = many_on_ray(tmp_path, trials), many_on_ray(tmp_path, trials)
    assert first["ends"] and second["ends"]
    size = sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())
    print(f"{size / 1e6:.0f} MB; resumed in {second['resumed_s']:.1f} s; KiB by tenth: {first['kib']}")
    assert size < trials * 20_000
    # Each tenth is a run of Tune, which keeps its trials until it ends: compared where they are fewest.
    assert (first["kib"]["9"] - first["kib"]["1"]) / (0.8 * trials) < 10
    assert second["resumed_s"] < 30
