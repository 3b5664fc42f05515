"""A few real training steps on this machine, where nothing is stated about its speed."""

from __future__ import annotations

import time

from components.tasks import get_task
from components.train.config import TrainConfig
from components.train.device import apply_placement, detect_hardware, plan_placement
from components.train.engine import EngineSettings, make_engine
from components.train.plan.network import Workload
from components.train.precision import settled

STEPS = 3


def probe_samples_per_s(workload: Workload, train: TrainConfig, micro_batch_size: int, workers: int) -> float:
    """Samples a second of one of `workers` workers of this machine, in its quickest of a few steps.

    The worker trains alone and unsharded, with the threads that it would have beside the others.
    """
    import torch

    from components.models.build import build_model
    from components.train.plan.rehearsal import example_batch

    placement = plan_placement(detect_hardware(), workers, train.precision)
    apply_placement(placement)
    alone = train.model_copy(update={
        "workers": 1, "global_batch_size": micro_batch_size, "gradient_accumulation_steps": 1,
        "zero": train.zero.model_copy(update={"stage": 0}),
    })  # fmt: skip
    precision = "fp32" if placement.precision == "probe" else placement.precision
    module = build_model(workload.model, workload.inputs, workload.num_classes)
    in_fp32 = settled(precision, placement, "stated").get("products") == "fp32"
    engine = make_engine(
        module, EngineSettings(alone, placement, precision, rank=0, world_size=1, fp32_products=in_fp32)
    )
    inputs, labels = example_batch(workload, micro_batch_size)
    inputs = {name: value.to(placement.device) for name, value in inputs.items()}
    labels = labels.to(placement.device)
    task, durations = get_task(workload.task), []
    for _ in range(STEPS + 1):
        start = time.perf_counter()
        logits = engine.forward(inputs)
        engine.backward(task.loss(logits, labels, 0.0))
        engine.step(train.learning_rate)
        if placement.device != "cpu":
            torch.cuda.synchronize()
        durations.append(time.perf_counter() - start)
    engine.close()
    return micro_batch_size / min(durations[1:])
