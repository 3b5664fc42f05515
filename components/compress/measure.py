"""Latency and outputs of ONNX graphs on this machine."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.artifacts.manifest import file_sha256

if TYPE_CHECKING:
    import numpy as np

    from components.artifacts.dataset import Split
    from components.tasks.base import Preprocessing

BATCH_ROWS = 32
"""Rows a forward pass: what the endpoint batches at most by default."""
BLOCK_RUNS = 10
"""Runs in a row of one graph before the next one's turn: enough to have its weights back in the cache."""
BLOCKS = 30
BUDGET_S = 6.0
"""Time for all graphs together; large ones get fewer runs."""
LATENCY_FILE = "latency.json"


@dataclass(frozen=True)
class Rows:
    """Some rows of a split as batches of model inputs."""

    split: Split
    preprocessing: Preprocessing
    indices: Sequence[int] | np.ndarray

    def batches(self, rows: int = BATCH_ROWS) -> Iterator[dict[str, np.ndarray]]:
        for start in range(0, len(self.indices), rows):
            yield self.preprocessing.collate(self.split.take(self.indices[start : start + rows]))


def run_graph(path: Path, batches: Iterable[Mapping[str, np.ndarray]]) -> np.ndarray:
    """Logits (rows, classes) of a graph.

    Raises:
        ValueError: If one of them is not finite.
    """
    import numpy as np

    from components.models.predictor import open_session

    session = open_session(path, threads=1)
    names = [tensor.name for tensor in session.get_inputs()]
    logits = np.concatenate([session.run(None, {name: batch[name] for name in names})[0] for batch in batches])
    if not np.isfinite(logits).all():
        raise ValueError("its outputs hold numbers that are not finite")
    return logits


def measure_once(
    graphs: Mapping[str, Path], batches: Sequence[Mapping[str, np.ndarray]], work_folder: Path
) -> dict[str, dict[str, float]]:
    """Latencies of `graphs`, measured at the first call and read back by a resumed stage, so that it chooses the same.

    A record holds for the same graphs only, told by their SHA-256.
    """
    record = work_folder / LATENCY_FILE
    digests = {name: file_sha256(path) for name, path in graphs.items()}
    known = _read_record(record)
    if known.get("graphs") == digests:
        return known["latency_ms"]
    latencies = measure_latency(graphs, batches)
    partial = record.with_suffix(".partial")
    partial.write_text(json.dumps({"graphs": digests, "latency_ms": latencies}, indent=1, sort_keys=True))
    partial.rename(record)
    return latencies


def measure_latency(
    graphs: Mapping[str, Path], batches: Sequence[Mapping[str, np.ndarray]]
) -> dict[str, dict[str, float]]:
    """p50 and p99 in milliseconds of each graph on one thread, preprocessing left out.

    The graphs take turns, so that a slow spell of a shared machine hits all of them alike.

    Args:
        batches: Model inputs of one row each, taken in turn.
    """
    import numpy as np

    from components.models.predictor import open_session

    sessions = {name: open_session(path, threads=1) for name, path in graphs.items()}
    times_s: dict[str, list[float]] = {name: [] for name in sessions}
    for session in sessions.values():
        time_runs(session, batches, 3)  # the first runs allocate memory
    end = time.perf_counter() + BUDGET_S
    for _ in range(BLOCKS):
        for name, session in sessions.items():
            times_s[name] += time_runs(session, batches, BLOCK_RUNS)
        if time.perf_counter() > end:
            break
    return {
        name: {"p50": float(np.median(times)) * 1e3, "p99": float(np.quantile(times, 0.99)) * 1e3}
        for name, times in times_s.items()
    }


def time_runs(session: Any, batches: Sequence[Mapping[str, np.ndarray]], runs: int) -> list[float]:
    """Seconds of each of some runs."""
    names = [tensor.name for tensor in session.get_inputs()]
    feeds = [{name: batch[name] for name in names} for batch in batches]
    times = []
    for run in range(runs):
        start = time.perf_counter()
        session.run(None, feeds[run % len(feeds)])
        times.append(time.perf_counter() - start)
    return times


def _read_record(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}  # none yet, or torn by a kill: measured anew
    return record if isinstance(record, dict) else {}
