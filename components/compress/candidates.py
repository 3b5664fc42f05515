"""Making and judging one candidate: its graph, its size, its metrics on the validation rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from components.compress.choose import Candidate, metric_drop
from components.compress.config import PRUNE, CompressConfig
from components.compress.measure import Rows, run_graph
from components.errors import name_error

if TYPE_CHECKING:
    import numpy as np

    from components.tasks.base import Task

FLOAT32 = "float32"


@dataclass(frozen=True)
class Work:
    """What the candidates of one model share.

    Attributes:
        model: Local folder of the trained model.
        folder: Where graphs are made; the float32 one is there.
        calibration: Training rows for int8-static.
        validation: The rows that candidates are judged on.
        labels: Class indices of the validation rows.
        reference: The trained network's logits on them, from torch.
    """

    task: Task
    config: CompressConfig
    model: Path
    folder: Path
    calibration: Rows
    validation: Rows
    labels: np.ndarray
    reference: np.ndarray

    def graph(self, method: str) -> Path:
        return self.folder / f"{method}.onnx"

    def size_bytes(self, weights: Path) -> int:
        """Bytes needed to serve: weights or graph, and the preprocessing."""
        preprocessing = (path for path in (self.model / "preprocess").rglob("*") if path.is_file())
        return weights.stat().st_size + sum(path.stat().st_size for path in preprocessing)


def judge_candidate(work: Work, method: str) -> Candidate:
    """Makes one candidate and measures its size and validation metrics; what goes wrong is kept in its `error`."""
    try:
        make_graph(work, method)
        logits = run_graph(work.graph(method), work.validation.batches())
    # A converter may fail in any way on a network it was not made for: that ends this candidate, not the run.
    except Exception as error:  # noqa: BLE001
        return Candidate(method, error=name_error(error))
    return rate_candidate(work, method, logits)


def make_graph(work: Work, method: str) -> None:
    """Writes the graph of `method` from the float32 one."""
    from components.compress.prune import prune_graph
    from components.compress.quantize import quantize_dynamic, quantize_static

    source, target = work.graph(FLOAT32), work.graph(method)
    if method == "int8-dynamic":
        quantize_dynamic(source, target)
    elif method == "int8-static":
        quantize_static(source, target, work.calibration.batches())
    elif match := PRUNE.fullmatch(method):
        pruned = work.folder / f"{method}.float32.onnx"
        prune_graph(source, pruned, int(match[1]))
        quantize_dynamic(pruned, target)


def rate_candidate(work: Work, method: str, logits: np.ndarray) -> Candidate:
    """Size, metrics and drop of a graph that runs, and whether they allow it to be chosen."""
    name = work.task.deciding_metric
    metrics = work.task.metrics(logits, work.labels)
    trained = work.task.metrics(work.reference, work.labels)
    drop = metric_drop(trained[name], metrics[name], work.task.mode)
    size_bytes, float32_bytes = (work.size_bytes(work.graph(which)) for which in (method, FLOAT32))
    larger = method != FLOAT32 and size_bytes >= float32_bytes
    return Candidate(
        method,
        size_bytes=size_bytes,
        metrics={"validation": metrics},
        drop=drop,
        accepted=drop <= work.config.accept.max_drop and not larger,
        size_ratio=work.size_bytes(work.model / "model.safetensors") / size_bytes,
        error=f"{size_bytes} bytes are not fewer than float32's {float32_bytes}" if larger else None,
    )


def with_latency(candidate: Candidate, latencies_ms: Mapping[str, Mapping[str, float]]) -> Candidate:
    """The candidate with its measured latency, if it has one."""
    latency = latencies_ms.get(candidate.method)
    if latency is None:
        return candidate
    return dataclasses.replace(candidate, latency_ms=latency, speedup=latencies_ms[FLOAT32]["p50"] / latency["p50"])
