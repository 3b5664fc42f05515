"""Out of memory, answered with a way to train that would need less."""

from __future__ import annotations

import traceback
from typing import Any

from components.errors import OutOfMemoryError, name_error
from components.train.device import detect_hardware, plan_placement
from components.train.job import TrainJob, Worker
from components.train.plan.measure import status_bytes

LESS = 0.8
"""What is proposed must need at most this share of what ran out, by the same prediction."""
CPU_WORDS = ("can't allocate memory", "not enough memory")
"""Of torch's allocator on a CPU, whose error has no class of its own."""


def is_out_of_memory(error: BaseException) -> bool:
    import torch

    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in CPU_WORDS)


def out_of_memory(job: TrainJob, worker: Worker, error: BaseException) -> OutOfMemoryError:
    """One sentence: what ran out, how much was in use at most, and what to change.

    It is not tried again with other settings by itself: another accumulation adds in another order, so that the result
    would no longer be that of the spec.
    """
    placement = plan_placement(detect_hardware(), worker.world_size, job.train.precision, worker.local_rank)
    precision = "fp32" if placement.precision == "probe" else placement.precision
    facts = {"device": placement.device, "workers": worker.world_size, "precision": {"precision": precision}}
    # What the training held is let go first: the plan takes some memory too.
    if error.__traceback__ is not None:
        traceback.clear_frames(error.__traceback__)
    try:
        advice = propose(job, facts)
    except Exception as unplanned:  # noqa: BLE001 (the reason to end is the memory, not the plan)
        advice = f"lower train.global_batch_size (no plan could be made: {name_error(unplanned)})"
    return OutOfMemoryError(
        f"Training ran out of memory on {placement.device} (at most {peak_bytes(placement.device) / 2**30:.2f} GiB in "
        f"use); {advice}.",
        field="train",
    )


def peak_bytes(device: str) -> int:
    """Most memory that this process held at once: on a GPU, or resident on the host."""
    import torch

    return status_bytes("VmHWM") if device == "cpu" else torch.cuda.max_memory_allocated(device)


def propose(job: TrainJob, facts: dict[str, Any]) -> str:
    """The planner's quickest way that needs clearly less than what ran.

    Args:
        facts: Of the training: device, workers, precision.
    """
    from components.train.plan.forecast import job_demand, job_setting, job_workload
    from components.train.plan.machine import memory_here
    from components.train.plan.search import Machine, Planner, gib, spec_changes

    workload = job_workload(job)
    demand, setting = job_demand(job, workload, facts), job_setting(job, workload, facts)
    needed = Planner(demand, Machine(setting.device, 0)).predict(setting).device_bytes
    there = memory_here(facts["workers"])[1]
    planner = Planner(demand, Machine(setting.device, min(there, int(LESS * needed))))
    chosen = planner.choose(planner.options())
    begin = f"it needs about {gib(needed)} a worker, of {gib(there)}"
    if chosen is None:
        return f"{begin}, and no other way needs clearly less: take a smaller model or batch, or more workers"
    train = job.train.model_dump()
    flat = {f"train.{name}": value for name, value in train.items()}
    flat.update({f"train.zero.{name}": value for name, value in train["zero"].items()})
    changes = {name: value for name, value in spec_changes(chosen.setting).items() if flat[name] != value}
    words = ", ".join(f"{name} to {str(value).lower()}" for name, value in changes.items())
    return f"{begin}; set {words}, which needs about {gib(chosen.memory.device_bytes)}"
