"""What a sweep costs beside its trials: 100 that sleep 1 s and report once, MLflow on. `make bench-tune_overhead`.

Three ways on two cores, each in a process of its own: Penstock, plain Ray Tune with Optuna, and two processes with
Optuna's own loop. Ideal is half a second a trial. Asked for: Penstock within 1.15 times the ideal and the start of Ray.
Run in turn, `ROUNDS` (5) times; the table holds medians. `TRIALS=20 ROUNDS=1` makes it short.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

TRIALS = int(os.environ.get("TRIALS", "100"))
ROUNDS = int(os.environ.get("ROUNDS", "5"))
CORES = 2
SLEEP_S = 1.0
SPACE = {"train.learning_rate": {"log_uniform": [1e-5, 1e-1]}}
OPTUNA_WORKER = """
import sys, time, mlflow, optuna
optuna.logging.set_verbosity(optuna.logging.ERROR)
folder, trials = sys.argv[1], int(sys.argv[2])
mlflow.set_tracking_uri("sqlite:///" + folder + "/mlflow.db")
storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(folder + "/journal"))
study = optuna.create_study(storage=storage, study_name="s", load_if_exists=True, direction="maximize")
def objective(trial):
    rate = trial.suggest_float("rate", 1e-5, 1e-1, log=True)
    with mlflow.start_run():
        mlflow.log_param("rate", rate)
        time.sleep(1.0)
        mlflow.log_metric("accuracy", rate)
    return rate
study.optimize(objective, n_trials=trials)
"""


CARRIER = """
import select, sys
from pathlib import Path
from components.tracking.sync import MlflowSync
sync = MlflowSync(Path(sys.argv[1]), sys.argv[2], "bench", {})
while not select.select([sys.stdin], [], [], 2.0)[0]:
    sync.sync()
sync.finish("done")
"""


def sleep_train(job: Any, worker: Any) -> None:
    """The trial of Penstock."""
    time.sleep(SLEEP_S)
    worker.report(1, {"accuracy": job.train.learning_rate, "loss": 0.0})


@contextlib.contextmanager
def local_ray(home: Path) -> Iterator[float]:
    """A Ray of its own with two cores; yields the seconds that its start took."""
    from components.ray_connection import connect_ray
    from pipelines.ray_cluster import client_environment, compute_environment, ensure_ray, lease, stop_ray

    os.environ.update(compute_environment())
    began = time.monotonic()
    with lease(home):
        cluster = ensure_ray(home)
        os.environ.update({**client_environment(home), "RAY_ADDRESS": cluster.address})
        # Ray has started when a driver has joined it.
        connect_ray()
        try:
            yield time.monotonic() - began
        finally:
            import ray

            ray.shutdown()
            stop_ray(home)
            del os.environ["RAY_ADDRESS"]


def run_penstock(home: Path) -> float:
    """Seconds of the stage `tune`, its journal carried to MLflow beside it and to the end."""
    from components.artifacts import write_artifact
    from components.context import Context
    from components.tune.stage import StageConfig, run

    (home / "run").mkdir()
    (home / "work").mkdir()
    context = Context("bench", "tune", home, home / "run", home / "work")
    with write_artifact(str(home / "dataset"), "dataset", {}, context) as draft:
        draft.write_json("schema.json", {})
    assert draft.artifact is not None
    tune = {"search": "bayesian", "trials": TRIALS, "concurrency": CORES, "space": SPACE}
    sections = {"model": {"architecture": "mlp"}, "train": {"epochs": 1}, "tune": tune}
    config = StageConfig.model_validate({"task": "image-classification", **sections})
    began = time.monotonic()
    with carrier(home):
        run(config, {"dataset": draft.artifact.ref}, str(home / "sweep"), context, train=sleep_train)
    return time.monotonic() - began


@contextlib.contextmanager
def carrier(home: Path) -> Iterator[None]:
    """Carries the journal to MLflow from another process, as the command does for its stages, to the last line."""
    command = [sys.executable, "-W", "ignore", "-c", CARRIER, str(home / "run"), database(home)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE)
    try:
        yield
    finally:
        process.communicate()
    if process.returncode != 0:
        sys.exit("the carrier to MLflow failed")


def database(home: Path) -> str:
    """MLflow's address in a home; the empty database is there already, for whoever comes."""
    return f"sqlite:///{home / 'mlflow.db'}"


def run_ray_tune(home: Path) -> float:
    """Seconds of the same with Ray Tune alone."""
    from ray import tune
    from ray.air.integrations.mlflow import MLflowLoggerCallback
    from ray.tune.search.optuna import OptunaSearch

    def trainable(config: dict[str, Any]) -> None:
        time.sleep(SLEEP_S)
        tune.report({"accuracy": config["rate"]})

    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"
    logger = MLflowLoggerCallback(database(home), experiment_name="plain")
    tuner = tune.Tuner(
        tune.with_resources(trainable, {"CPU": 1}),
        param_space={"rate": tune.loguniform(1e-5, 1e-1)},
        tune_config=tune.TuneConfig(
            metric="accuracy", mode="max", search_alg=OptunaSearch(), num_samples=TRIALS, max_concurrent_trials=CORES,
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(name="plain", storage_path=str(home / "plain"), verbose=0, callbacks=[logger]),
    )  # fmt: skip
    began = time.monotonic()
    tuner.fit()
    return time.monotonic() - began


def run_optuna(home: Path) -> float:
    """Seconds of Optuna's loop in two processes that share a journal."""
    command = [sys.executable, "-W", "ignore", "-c", OPTUNA_WORKER, str(home), str(TRIALS // CORES)]
    began = time.monotonic()
    workers = [subprocess.Popen(command, stderr=sys.stderr) for _ in range(CORES)]
    if any([worker.wait() for worker in workers]):
        sys.exit("a process of Optuna's loop failed")
    return time.monotonic() - began


CONTENDERS = {"penstock": (run_penstock, True), "ray-tune": (run_ray_tune, True), "optuna": (run_optuna, False)}


def run_one(name: str) -> dict[str, float]:
    """Runs one contender in this process, in a home of its own."""
    from components.tracking.client import place_database

    function, with_ray = CONTENDERS[name]
    home = Path(tempfile.mkdtemp(prefix="bt-"))
    place_database(home / "mlflow.db")
    try:
        with local_ray(home) if with_ray else contextlib.nullcontext(0.0) as start_s:
            return {"start_s": start_s, "seconds": function(home)}
    finally:
        shutil.rmtree(home, ignore_errors=True)


def main() -> None:
    if len(sys.argv) > 1:
        print(json.dumps(run_one(sys.argv[1])))
        return
    ideal = TRIALS * SLEEP_S / CORES
    print(f"{TRIALS} trials of {SLEEP_S:g} s on {CORES} cores, MLflow on; ideal {ideal:.0f} s; {ROUNDS} rounds in turn")
    found: dict[str, list[dict[str, float]]] = {name: [] for name in CONTENDERS}
    for count in range(ROUNDS):
        for name in CONTENDERS:
            found[name].append(run_apart(name))
            over = over_ideal(found[name][-1], ideal)
            print(f"  round {count + 1}: {name:12} {over:5.2f}x over ideal + start", flush=True)
    print("             Ray starts   trials    in all   over ideal + start: median (least to most)")
    for name, runs in found.items():
        start_s, seconds = (statistics.median(run[key] for run in runs) for key in ("start_s", "seconds"))
        overs = sorted(over_ideal(run, ideal) for run in runs)
        spread = f"{statistics.median(overs):6.2f}x ({overs[0]:.2f} to {overs[-1]:.2f})"
        print(f"{name:12} {start_s:8.1f} s {seconds:8.1f} {start_s + seconds:9.1f}   {spread}")


def over_ideal(run: dict[str, float], ideal: float) -> float:
    return (run["start_s"] + run["seconds"]) / (ideal + run["start_s"])


def run_apart(name: str) -> dict[str, float]:
    """One contender in a process of its own."""
    done = subprocess.run([sys.executable, "-W", "ignore", __file__, name], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{name} failed:\n{done.stderr[-2000:]}")
    measured: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return measured


if __name__ == "__main__":
    main()
