"""What was predicted for a training that has ended, to be recorded beside what it measured."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from components.train.feed import MEMORY_LIMIT_BYTES
from components.train.job import TrainJob
from components.train.plan.memory import Setting
from components.train.plan.network import Workload
from components.train.plan.search import Demand, Machine, Planner, validation_batch
from components.train.plan.states import Sharding

LABEL_BYTES = 8


def forecast_peak(job: TrainJob, workload: Workload, facts: Mapping[str, Any]) -> int:
    """Bytes that a worker of this job takes at most, beyond what its process took before.

    Args:
        job: What was trained.
        workload: Its network and sample, with the data's true sizes.
        facts: Of the training: workers, precision, device.
    """
    train, workers = job.train, facts["workers"]
    device: Literal["cpu", "cuda"] = "cuda" if str(facts["device"]).startswith("cuda") else "cpu"
    precision: Literal["fp32", "bf16"] = "fp32" if facts["precision"]["precision"] == "fp32" else "bf16"
    demand = Demand(workload, train.optimizer.name, precision, train.global_batch_size, workers)
    rows = split_rows(job.dataset, workload)
    setting = Setting(
        optimizer=demand.optimizer,
        precision=precision,
        sharding=Sharding(train.zero.stage, workers, train.zero.offload_optimizer, train.zero.offload_parameters),
        micro_batch_size=demand.samples_per_worker // train.gradient_accumulation_steps,
        accumulation=train.gradient_accumulation_steps,
        checkpointing=train.activation_checkpointing,
        device=device,
        validation_batch=min(validation_batch(workload), max(1, rows["validation"] // workers)),
        averaged=train.ema is not None,
        data_bytes=sum(kept_bytes(workload, rows[name]) for name in ("train", "validation")),
    )
    return Planner(demand, Machine(device, 0), exact=True).predict(setting).training_bytes


def split_rows(dataset: Path, workload: Workload) -> dict[str, int]:
    """Samples of each split, from the dataset's own record."""
    schema = json.loads((dataset / "schema.json").read_text())
    if workload.is_decoder:
        return {name: tokens // workload.tokens for name, tokens in schema["tokens"].items()}
    return schema["rows"]


def kept_bytes(workload: Workload, rows: int) -> int:
    """Bytes of a split that `Feed` keeps as tensors; a language model's tokens stay in their file."""
    if workload.is_decoder:
        return 0
    sizes = workload.inputs
    if "image_size" in sizes:
        sample = 4 * sizes["channels"] * sizes["image_size"] ** 2
    else:
        sample = 2 * 8 * sizes["max_length"]
    return rows * (sample + LABEL_BYTES) if rows * sample <= MEMORY_LIMIT_BYTES else 0
