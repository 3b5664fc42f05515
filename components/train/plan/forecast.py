"""What was predicted for a training that has ended, to be recorded beside what it measured."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from components.tasks import get_task
from components.train.evaluation import divide_rows
from components.train.feed import MEMORY_LIMIT_BYTES
from components.train.job import TrainJob
from components.train.plan.memory import Setting
from components.train.plan.network import Workload
from components.train.plan.search import Demand, Machine, Planner
from components.train.plan.states import Sharding
from components.train.session import network_inputs

LABEL_BYTES = 8


def forecast_peak(job: TrainJob, facts: Mapping[str, Any]) -> int:
    """Bytes that a worker of this job takes at most, beyond what its process took before.

    Args:
        job: What was trained.
        facts: Of the training: workers, precision, device.
    """
    workload = job_workload(job)
    setting = job_setting(job, workload, facts)
    planner = Planner(job_demand(job, workload, facts), Machine(setting.device, 0), exact=True)
    return planner.predict(setting).training_bytes


def job_workload(job: TrainJob) -> Workload:
    """Its network and sample, with the data's true sizes."""
    preprocessing = get_task(job.task).load(job.dataset / "preprocess")
    return Workload(job.task, job.model, network_inputs(job, preprocessing), len(preprocessing.classes))


def job_demand(job: TrainJob, workload: Workload, facts: Mapping[str, Any]) -> Demand:
    """What was asked for, in the precision that was chosen."""
    precision: Literal["fp32", "bf16"] = "fp32" if facts["precision"]["precision"] == "fp32" else "bf16"
    train = job.train
    return Demand(
        workload,
        train.optimizer.name,
        precision,
        train.global_batch_size,
        facts["workers"],
        averaged=train.ema is not None,
        saved_beside=train.saves_beside(),
        fp32_products=facts["precision"].get("products") == "fp32",
    )


def job_setting(job: TrainJob, workload: Workload, facts: Mapping[str, Any]) -> Setting:
    """How it ran."""
    train, demand, rows = job.train, job_demand(job, workload, facts), split_rows(job.dataset, workload)
    return Setting(
        optimizer=demand.optimizer,
        precision=demand.precision,
        sharding=Sharding.of(train.zero, demand.workers),
        micro_batch_size=demand.samples_per_worker // train.gradient_accumulation_steps,
        accumulation=train.gradient_accumulation_steps,
        checkpointing=train.activation_checkpointing,
        device="cuda" if str(facts["device"]).startswith("cuda") else "cpu",
        validation_batch=divide_rows(max(1, rows["validation"]), workload.label_tokens, demand.workers)[1],
        averaged=demand.averaged,
        saved_beside=demand.saved_beside,
        reads_rows=not workload.is_decoder,
        data_bytes=sum(kept_bytes(workload, rows[name]) for name in ("train", "validation")),
    )


def split_rows(dataset: Path, workload: Workload) -> dict[str, int]:
    """Samples of each split, from the dataset's own record."""
    schema = json.loads((dataset / "schema.json").read_text())
    if workload.is_decoder:
        return {name: (tokens - 1) // workload.tokens for name, tokens in schema["tokens"].items()}
    return schema["rows"]


def kept_bytes(workload: Workload, rows: int) -> int:
    """Bytes of a split that `Feed` keeps as tensors; a language model's tokens stay in their file."""
    if workload.is_decoder:
        return 0
    sizes = workload.inputs
    if "image_size" in sizes:
        sample = 4 * sizes["channels"] * sizes["image_size"] ** 2
    else:
        sample = 2 * 8 * (sizes["max_length"] + sizes.get("max_target_length", 0))
    return rows * (sample + LABEL_BYTES) if rows * sample <= MEMORY_LIMIT_BYTES else 0
