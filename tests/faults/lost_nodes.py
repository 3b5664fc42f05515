"""A sweep on two nodes of one Ray, one of which is killed again and again. Prints one JSON document.

python -m tests.faults.lost_nodes FOLDER KILLS SECONDS_BETWEEN ours|plain
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

EPOCHS, EPOCH_S = 16, 0.5
STARTED_WITHIN_S, DEADLINE_S = 120.0, 400.0


def epoch(folder: Path, number: int) -> None:
    """The work of an epoch, begun and then done."""
    with (folder / "ledger.txt").open("a") as ledger:
        # The parent of a worker is its node's raylet.
        ledger.write(f"begun {number} {os.getppid()}\n")
        ledger.flush()
        time.sleep(EPOCH_S)
        ledger.write(f"done {number}\n")


def train(job: Any, worker: Any) -> None:
    """Like a real training it keeps a checkpoint an epoch and tells what it knew again."""
    checkpoint = job.work_folder / "epochs.txt"
    done = int(checkpoint.read_text()) if checkpoint.exists() else 0
    for number in range(1, EPOCHS + 1):
        if number > done:
            epoch(job.work_folder.parent.parent, number)
            partial = checkpoint.with_suffix(".partial")
            partial.write_text(str(number))
            partial.rename(checkpoint)
        worker.report(number, {"accuracy": job.train.learning_rate, "loss": 0.0})


def sweep_ours(folder: Path, trials: int) -> list[str]:
    """The states of the trials of our sweep."""
    from dataclasses import replace

    from components.artifacts import write_artifact
    from components.tune.stage import StageConfig, run
    from tests.components.tune.fakes import make_context

    context = replace(make_context(folder), debug=False)
    with write_artifact(str(folder / "dataset"), "dataset", {}, context) as draft:
        draft.write_json("schema.json", {})
    assert draft.artifact is not None
    tune = {"search": "random", "trials": trials, "space": {"train.learning_rate": {"log_uniform": [1e-5, 1e-1]}}}
    sections = {"model": {"architecture": "mlp"}, "train": {"epochs": EPOCHS}, "tune": tune}
    config = StageConfig.model_validate({"task": "image-classification", **sections})
    sweep = run(config, {"dataset": draft.artifact.ref}, str(folder / "sweep"), context, train=train)
    return [trial["state"] for trial in sweep.read_json("trials.json")]


def sweep_plain(folder: Path, trials: int) -> list[str]:
    """The same with Ray Tune as it is shipped."""
    import ray
    from ray import tune

    (folder / "work").mkdir()

    def trainable(config: dict[str, Any]) -> None:
        for number in range(1, EPOCHS + 1):
            epoch(folder / "work", number)
            tune.report({"accuracy": config["rate"]})

    ray.init(address=os.environ["RAY_ADDRESS"], log_to_driver=False)
    found = tune.Tuner(
        tune.with_resources(trainable, {"CPU": 1}),
        param_space={"rate": tune.loguniform(1e-5, 1e-1)},
        tune_config=tune.TuneConfig(num_samples=trials),
        run_config=tune.RunConfig(name="plain", storage_path=str(folder / "plain"), verbose=0),
    ).fit()
    return ["failed" if result.error else "finished" for result in found]


def begun(folder: Path, raylet: int | None = None) -> int:
    """Epochs that any trial has begun, or any on one node."""
    ledger = folder / "work" / "ledger.txt"
    lines = ledger.read_text().splitlines() if ledger.exists() else []
    return sum(line.startswith("begun") and (raylet is None or line.endswith(f" {raylet}")) for line in lines)


def wait_for_epoch(folder: Path, raylet: int | None, process: subprocess.Popen[bytes]) -> None:
    """Until a trial begins an epoch on that node (on any), or the sweep has ended."""
    deadline, known = time.monotonic() + STARTED_WITHIN_S, begun(folder, raylet)
    while begun(folder, raylet) == known and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)


def tried_again(start: Callable[[], Any]) -> Any:
    """Starts a part of Ray. Ray gives a raylet 30 s to start, whatever else runs, so it is tried thrice."""
    for _ in range(2):
        with contextlib.suppress(Exception):
            return start()
    return start()


def main(folder: Path, kills: int, every_s: float, whose: str) -> None:
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 1, "include_dashboard": False}
    cluster = tried_again(lambda: Cluster(initialize_head=True, head_node_args=head))
    node = tried_again(lambda: cluster.add_node(num_cpus=1))
    command = [sys.executable, "-m", "tests.faults.lost_nodes", str(folder), "sweep", whose, str(2 * kills + 2)]
    process = subprocess.Popen(command, env={**os.environ, "RAY_ADDRESS": cluster.address}, stdout=sys.stderr)
    try:
        began = time.monotonic()
        wait_for_epoch(folder, None, process)
        for _ in range(kills):
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(every_s)
            raylet = node.all_processes["raylet"][0].process.pid
            wait_for_epoch(folder, raylet, process)
            os.kill(raylet, signal.SIGKILL)
            cluster.remove_node(node, allow_graceful=False)
            node = tried_again(lambda: cluster.add_node(num_cpus=1))
        process.wait(DEADLINE_S)
    finally:
        process.kill()
        cluster.shutdown()
    ledger = (folder / "work" / "ledger.txt").read_text()
    states = json.loads((folder / "states.json").read_text()) if process.returncode == 0 else []
    print(json.dumps({"states": states, "begun": ledger.count("begun"), "done": ledger.count("done"),
                      "seconds": time.monotonic() - began}))  # fmt: skip


if __name__ == "__main__":
    if sys.argv[2] == "sweep":
        sweep = sweep_ours if sys.argv[3] == "ours" else sweep_plain
        Path(sys.argv[1], "states.json").write_text(json.dumps(sweep(Path(sys.argv[1]), int(sys.argv[4]))))
    else:
        main(Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), sys.argv[4])
