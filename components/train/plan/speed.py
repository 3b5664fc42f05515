"""FLOPs of a sample, and what they mean in samples per second, hours and money."""

from __future__ import annotations

from dataclasses import dataclass

from components.train.plan.network import NetworkSizes, Workload

DEFAULT_MFU = 0.4
"""Share of the peak that a well-tuned training reaches; stated with every plan that assumes it."""
RECOMPUTATION = 4 / 3
"""Work of a step with activation checkpointing: a second forward pass, which is a third of the step without."""


@dataclass(frozen=True)
class Gpu:
    """Peak of dense bf16 matrix products, and memory, from NVIDIA's data sheets."""

    peak_tflops: float
    memory_gib: float


GPUS = {
    "A10G": Gpu(70, 22),
    "A100-40": Gpu(312, 40),
    "A100": Gpu(312, 80),
    "B200": Gpu(2250, 178),
    "H100": Gpu(989, 79),
    "H200": Gpu(989, 140),
    "L4": Gpu(121, 22),
    "L40S": Gpu(362, 45),
    "V100": Gpu(125, 32),
}
"""By the name that `--gpu` takes and torch reports a part of."""


@dataclass(frozen=True)
class Pace:
    """How fast a training is expected to go.

    Attributes:
        samples_per_s: Over all workers.
        tokens_per_s: As `samples_per_s`.
        step_s: Seconds an optimizer step.
        hours: To the end; None where the number of samples is not known.
        cost: Price of all workers until then; None without a price or an end.
    """

    samples_per_s: float
    tokens_per_s: float
    step_s: float
    hours: float | None
    cost: float | None


def find_gpu(name: str) -> Gpu | None:
    """The entry whose name is part of `name`; the longest one if there are several."""
    return GPUS.get(max((known for known in GPUS if known.lower() in name.lower()), key=len, default=""))


def flops_per_token(sizes: NetworkSizes, workload: Workload) -> float:
    """Floating-point operations of forward and backward pass a token, without any recomputation.

    6 for each weight that is multiplied with (4 if it is frozen: it has no gradient of its own), and 12 x layers x
    hidden x tokens for the attention.

    Source: Chowdhery et al. 2022, appendix B, https://arxiv.org/abs/2204.02311
    """
    blocks = workload.transformer
    attention = 12 * blocks.num_hidden_layers * blocks.hidden_size * workload.tokens if blocks else 0
    spared = 2 * (sizes.frozen - sizes.looked_up) if sizes.frozen else 0  # tables are frozen with the rest
    return 6 * (sizes.parameters - sizes.looked_up) - spared + attention


def count_flops(workload: Workload) -> float:
    """FLOPs of a sample, counted operation by operation on fake tensors: convolutions use a weight more than once."""
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.utils.flop_counter import FlopCounterMode

    from components.train.plan.network import build_empty
    from components.train.plan.rehearsal import Step, example_batch, run_step

    with FakeTensorMode():
        module = build_empty(workload)
        inputs, labels = example_batch(workload, 2)
        with FlopCounterMode(display=False) as counter:
            run_step(workload, module, inputs, labels, Step(bf16=False))
    return counter.get_total_flops() / 2


def flops_per_sample(sizes: NetworkSizes, workload: Workload) -> float:
    """By formula for Transformers in which every token meets every weight, counted for all others."""
    if workload.transformer is not None and "max_target_length" not in workload.inputs:
        return workload.tokens * flops_per_token(sizes, workload)
    return count_flops(workload)


def expected_pace(
    samples_per_s: float, tokens: int, global_batch_size: int, samples: int | None, workers: int, price: float | None
) -> Pace:
    """From a speed to hours and cost.

    Args:
        samples_per_s: Over all workers.
        tokens: A sample.
        global_batch_size: Samples an optimizer step.
        samples: In the whole training; None where it is not known.
        workers: Each costs `price` an hour.
        price: Of one worker's GPU an hour; None is not known.
    """
    hours = None if samples is None else samples / samples_per_s / 3600
    cost = None if hours is None or price is None else hours * workers * price
    return Pace(samples_per_s, samples_per_s * tokens, global_batch_size / samples_per_s, hours, cost)
