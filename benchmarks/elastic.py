"""An elastic training that loses a machine and gets one back, over and over. `make bench-elastic`.

Two logical nodes of Ray with a core each, and a training with `workers: {min: 1, max: 2}` and ZeRO-2. Each fault takes
a node away, waits until training goes on, gives a node back and waits until it is used. `FAULTS=3` makes it short.
Asked for: training goes on within 60 s, at most one checkpoint interval is lost. Goodput is the time that the steps
take without a fault, against the whole time.

    python benchmarks/elastic.py FOLDER        # one JSON document, with its files in FOLDER (a test uses it)
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from components.train.job import TrainJob

FAULTS = int(os.environ.get("FAULTS", "10"))
KILLS = int(os.environ.get("KILLS", "0"))
"""Worker processes that are killed before the first fault, their machines still there."""
DEADLINE_S = 240.0
SETTLED_REPORTS = 5
"""By two workers, about a second apart, before the next fault."""
ENDLESS = 10_000_000
INTERVAL = 200
"""Steps between two checkpoints."""


@dataclass
class Fault:
    """One loss: seconds until steps were taken again, and until the machine that came back was used.

    Attributes:
        noticed_s: Until Ray's controller knew of it.
        opened_s: Until the smaller group stood at the checkpoint.
        lost_steps: Taken since the checkpoint that training went back to.
    """

    kind: str
    pause_s: float
    noticed_s: float
    opened_s: float
    lost_steps: int
    regrown_s: float | None = None


class Run:
    """The training, which would never end, in a process of its own, and what it tells."""

    def __init__(self, folder: Path, address: str) -> None:
        self.events, self.work_folder = folder / "run" / "events.jsonl", folder / "work"
        self.restarts = self.work_folder / "restarts.jsonl"
        command = [sys.executable, __file__, str(folder), "train"]
        self.process = subprocess.Popen(
            command, env={**os.environ, "RAY_ADDRESS": address}, stdout=(folder / "training.log").open("w"), stderr=2
        )

    def told(self, kind: str, since: float = 0.0) -> list[dict[str, Any]]:
        from components.context import read_lines

        return [event for event in read_lines(self.events) if event["kind"] == kind and event["time"] > since]

    def wait_for(self, what: str, holds: Callable[[], Any]) -> None:
        deadline = time.monotonic() + DEADLINE_S
        while not holds():
            if self.process.poll() is not None:
                sys.exit(f"The training ended with {self.process.returncode} before {what}; see training.log.")
            if time.monotonic() > deadline:
                sys.exit(f"Waited {DEADLINE_S:g} s in vain for {what}.")
            time.sleep(0.1)

    def sizes(self) -> list[int]:
        """Workers of each report since the last loss."""
        lost = self.told("warning")[-1]["time"] if self.told("warning") else 0.0
        return [event["workers"] for event in self.told("progress", lost)]

    def settle(self) -> None:
        """Waits until two workers have trained for some seconds, and there is a checkpoint."""
        self.wait_for("two workers", lambda: self.sizes()[-SETTLED_REPORTS:] == [2] * SETTLED_REPORTS)
        self.wait_for("a checkpoint", lambda: any(self.work_folder.glob("checkpoints/step-*/manifest.json")))

    def suffer(self, kind: str, harm: Callable[[], None]) -> Fault:
        """Does harm and waits until steps are taken again."""
        from components.context import read_lines

        known, before, moment = len(read_lines(self.restarts)), self.told("progress")[-1]["step"], time.time()
        harm()
        self.wait_for("Ray to notice", lambda: len(read_lines(self.restarts)) > known)
        restart = read_lines(self.restarts)[known]
        self.wait_for("the next steps", lambda: self.told("progress", restart["time"]))
        # A group tells the last validation again when it has opened its checkpoint.
        opened, first = (self.told(name, restart["time"])[0]["time"] for name in ("metric", "progress"))
        seconds = [round(each - moment, 1) for each in (first, restart["time"], opened)]
        return Fault(kind, *seconds, lost_steps=max(0, before - restart["step"]))


def run_faults(folder: Path, tell: Callable[[Fault], None]) -> dict[str, Any]:
    """Starts the nodes and the training, and breaks them; nodes can be added from the main thread only.

    Args:
        tell: Called after each fault.
    """
    from ray.cluster_utils import Cluster

    from tests.builders import build_dataset

    (folder / "data").mkdir(parents=True)
    build_dataset(folder / "data", rows=300)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        cluster.add_node(num_cpus=1)
        node, faults = cluster.add_node(num_cpus=1), list[Fault]()
        began = time.monotonic()
        run = Run(folder, cluster.address)
        for _ in range(KILLS):
            run.settle()
            faults.append(run.suffer("worker killed", kill_worker))
            tell(faults[-1])
        for _ in range(FAULTS):
            run.settle()
            faults.append(run.suffer("machine lost", partial(cluster.remove_node, node, allow_graceful=False)))
            returned = time.time()
            node = cluster.add_node(num_cpus=1)
            run.wait_for("two workers", lambda: run.sizes()[-1:] == [2])
            faults[-1].regrown_s = round(run.told("progress")[-1]["time"] - returned, 1)
            tell(faults[-1])
        seconds, steps = time.monotonic() - began, run.told("progress")[-1]["step"]
        run.process.terminate()
        run.process.wait()
    finally:
        cluster.shutdown()
    return {
        "faults": [asdict(fault) for fault in faults],
        "steps": steps,
        "seconds": round(seconds, 1),
        "goodput": round(steps / steps_per_s(run) / seconds, 3),
    }


def kill_worker() -> None:
    """SIGKILL to one of the training's worker processes."""
    import psutil

    workers = [
        process
        for process in psutil.Process().children(recursive=True)
        if process.name().startswith("ray::RayTrainWor")
    ]
    workers[-1].kill()


def steps_per_s(run: Run) -> float:
    """The pace of two workers without a fault: the best of some seconds between two reports."""
    told = [event for event in run.told("progress") if event["workers"] == 2]
    spans = zip(told, told[SETTLED_REPORTS - 1 :], strict=False)
    return max((after["step"] - before["step"]) / (after["time"] - before["time"]) for before, after in spans)


def train(folder: Path) -> None:
    """The training itself."""
    from components.train.launch import launch_group
    from tests.builders import make_context

    launch_group(elastic_job(folder), make_context(folder, "train", debug=False))


def elastic_job(folder: Path) -> TrainJob:
    from components.artifacts import open_artifact
    from tests.components.train.jobs import make_job

    model = {"architecture": "mlp", "hidden_sizes": [64], "dropout": 0.0}
    values = {"workers": 2, "min_workers": 1, "zero": {"stage": 2}, "validate_every_steps": INTERVAL}
    dataset = open_artifact(str(folder / "data" / "dataset"), kind="dataset")
    return make_job(dataset, folder / "work", model, max_steps=ENDLESS, learning_rate=1e-4, **values)


def print_fault(fault: Fault) -> None:
    print(
        f"{fault.kind:16} {fault.pause_s:7.1f} {fault.noticed_s:8.1f} {fault.opened_s:7.1f} "
        f"{fault.lost_steps:11d} {fault.regrown_s or 0:21.1f}",
        flush=True,
    )


def print_sums(found: dict[str, Any]) -> None:
    longest = max(fault["pause_s"] for fault in found["faults"])
    lost = max(fault["lost_steps"] for fault in found["faults"])
    print(
        f"longest pause {longest:.0f} s (60 allowed), most steps lost {lost} (interval {INTERVAL}), "
        f"goodput {found['goodput']:.0%} of {found['seconds']:.0f} s with a fault every "
        f"{found['seconds'] / len(found['faults']):.0f} s"
    )


def main() -> None:
    root = str(Path(__file__).resolve().parent.parent)
    sys.path.insert(0, root)
    from pipelines.ray_cluster import client_environment, compute_environment

    if sys.argv[2:3] == ["train"]:
        train(Path(sys.argv[1]))
        return
    with tempfile.TemporaryDirectory(prefix="bench-el-") as temporary:
        folder = Path(sys.argv[1] if sys.argv[1:] else temporary)
        os.environ.update(client_environment(Path(temporary)), **compute_environment(), PYTHONPATH=root)
        if sys.argv[1:]:
            print(json.dumps(run_faults(folder / "elastic", lambda fault: None)))
            return
        print("fault            pause s  noticed  opened  lost steps  machine used after s", flush=True)
        print_sums(run_faults(folder / "elastic", print_fault))


if __name__ == "__main__":
    main()
