"""What a tracking server costs a training's steps: healthy, dead and stopped, against none. `make bench-tracking`.

The same small training, in turn: without MLflow (`--offline`), beside a healthy server, beside one that was killed, and
beside one that was stopped, so that it accepts connections and never answers. `ROUNDS=2 EPOCHS=50` makes it short.
Asked for: the step's median within 1 % of that without a server, its 99th percentile within 5 ms.
"""

from __future__ import annotations

import os
import signal
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from components.artifacts import Artifact
from components.train.launch import ContextWorker
from components.train.loop import train
from pipelines.run import child_environment
from pipelines.tracking import carried
from tests.builders import build_dataset, make_run_folder
from tests.components.train.jobs import make_job
from tests.mlflow_server import MlflowServer, running_server

ROUNDS = int(os.environ.get("ROUNDS", "5"))
EPOCHS = int(os.environ.get("EPOCHS", "400"))
SETTLED_EPOCHS = 5
"""Left out at the beginning of a training."""
SETTLING_S = 8.0
"""For the imports and the first requests of the process that carries the journal: a run's start, not its steps."""
STEPS_PER_EPOCH = 8
CASES = ("none", "healthy", "killed", "stopped")
MOST_SHARE, MOST_P99_MS = 0.01, 5.0


@dataclass(frozen=True)
class Timed(ContextWorker):
    """Journals like any worker, and notes when."""

    times: list[float] = field(default_factory=list)

    def report(self, epoch: int, metrics: Any) -> None:
        super().report(epoch, metrics)
        self.times.append(time.perf_counter())


def main() -> None:
    found: dict[str, list[tuple[float, float]]] = {case: [] for case in CASES}
    with tempfile.TemporaryDirectory(prefix="bench-tracking-") as place:
        folder = Path(place)
        (folder / "server").mkdir()
        dataset = build_dataset(folder, rows=300)
        with running_server(folder / "server") as server:
            for number in range(ROUNDS):
                for case in CASES:
                    found[case].append(measure(case, server, dataset, folder / f"{case}-{number}"))
    sys.exit(show(found))


def measure(case: str, server: MlflowServer, dataset: Artifact, home: Path) -> tuple[float, float]:
    """Milliseconds a step, an epoch's validation and journal included: median and 99th percentile."""
    # The carrier is there before its server goes, and notices it during the training.
    run = make_run_folder(home, server.address, offline=case == "none")
    worker = Timed(run.context("train", home / "work"))
    # As any run does before it trains: the carrier connects now.
    worker.context.track("params", params={"case": case})
    with carried(run, {**child_environment(), "MLFLOW_HTTP_REQUEST_TIMEOUT": "5"}) as carrier:
        time.sleep(0 if case == "none" else SETTLING_S)
        break_server(case, server)
        train(make_job(dataset, home / "work", epochs=EPOCHS, checkpoint_every_epochs=EPOCHS), worker)
        mend_server(case, server)
        carrier.stop("done")
    epochs = [later - sooner for sooner, later in zip(worker.times, worker.times[1:], strict=False)][SETTLED_EPOCHS:]
    steps_ms = sorted(1e3 * seconds / STEPS_PER_EPOCH for seconds in epochs)
    return statistics.median(steps_ms), steps_ms[int(0.99 * len(steps_ms))]


def break_server(case: str, server: MlflowServer) -> None:
    if case == "killed":
        server.kill()
    elif case == "stopped":
        server.signal(signal.SIGSTOP)


def mend_server(case: str, server: MlflowServer) -> None:
    if case == "killed":
        server.start()
    elif case == "stopped":
        server.signal(signal.SIGCONT)


def show(found: dict[str, list[tuple[float, float]]]) -> bool:
    """Prints the table; gives whether a case is dearer than asked for."""
    print(f"server     ms a step   change   p99 ms   change   (median of {ROUNDS} trainings in turn)")
    middle = {case: [statistics.median(column) for column in zip(*ones, strict=True)] for case, ones in found.items()}
    base, base_p99 = middle["none"]
    dear = False
    for case, (median, p99) in middle.items():
        share, more = median / base - 1, p99 - base_p99
        dear |= share > MOST_SHARE or more > MOST_P99_MS
        print(f"{case:9} {median:10.2f} {share:+8.1%} {p99:8.2f} {more:+8.2f}")
    return dear


if __name__ == "__main__":
    main()
