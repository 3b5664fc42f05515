"""What can be measured of a trial's network before it is trained: its size, and how long an answer takes."""

from __future__ import annotations

import statistics
import time
from collections.abc import Collection
from typing import TYPE_CHECKING

from components.artifacts.dataset import open_split
from components.models.build import build_model
from components.models.folder import count_parameters
from components.tasks import get_task
from components.train.job import TrainJob
from components.train.session import SEQ_LEN, network_inputs

if TYPE_CHECKING:
    import torch
    from torch import nn

    from components.tasks.base import Preprocessing

WARM_UP, REPEATS = 5, 30


def measure_network(job: TrainJob, wanted: Collection[str]) -> dict[str, float]:
    """The measures in `wanted` (see `aims.MEASURED`) of an untrained network: none of them depends on its weights.

    Returns:
        parameters: numbers that are trained.  size_bytes: weights and preprocessing, as needed to serve.
        latency_ms: median forward pass of one validation sample on one thread, preprocessing left out.
    """
    preprocessing = get_task(job.task).load(job.dataset / "preprocess")
    module = build_model(job.model, network_inputs(job, preprocessing), len(preprocessing.classes)).eval()
    weights = sum(tensor.numel() * tensor.element_size() for tensor in module.state_dict().values())
    files = [path for path in (job.dataset / "preprocess").rglob("*") if path.is_file()]
    values: dict[str, float] = {
        "parameters": count_parameters(module),
        "size_bytes": weights + sum(path.stat().st_size for path in files),
    }
    if "latency_ms" in wanted:
        values["latency_ms"] = measure_latency(module, preprocessing, job)
    return {name: values[name] for name in wanted}


def measure_latency(module: nn.Module, preprocessing: Preprocessing, job: TrainJob) -> float:
    """Milliseconds of a forward pass; the median, because other trials train beside it."""
    import torch

    inputs = one_sample(preprocessing, job)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.inference_mode():
            seconds = [_time(module, inputs) for _ in range(WARM_UP + REPEATS)][WARM_UP:]
    finally:
        torch.set_num_threads(threads)
    return round(1e3 * statistics.median(seconds), 4)


def one_sample(preprocessing: Preprocessing, job: TrainJob) -> dict[str, torch.Tensor]:
    """Inputs of a batch of one; of a language model a whole context, whatever it says."""
    import torch

    if get_task(job.task).packed:
        return {"input_ids": torch.zeros(1, job.train.seq_len or SEQ_LEN, dtype=torch.long)}
    sample = preprocessing.collate(open_split(job.dataset, "validation").take([0]))
    return {name: torch.from_numpy(values) for name, values in sample.items()}


def _time(module: nn.Module, inputs: dict) -> float:
    began = time.perf_counter()
    module(**inputs)
    return time.perf_counter() - began
