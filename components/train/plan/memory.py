"""A worker's peak memory: states, activations, buffers and what the libraries take.

prediction = predict_memory(sizes, steps, setting)
prediction.device_bytes <= memory_bytes
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from components.train.plan.network import NetworkSizes
from components.train.plan.states import FP32_BYTES, Sharding, StateBytes, state_bytes

if TYPE_CHECKING:
    from components.train.plan.rehearsal import StepMemory

MIB = 1 << 20

REDUCE_BUCKET_ELEMENTS = 500_000_000
"""DeepSpeed's `reduce_bucket_size`: gradients are put together in it to be sent. A GPU allocates it whole, a CPU only
what is written."""
MAX_LIVE_PARAMETERS = 1_000_000_000
"""DeepSpeed's `stage3_max_live_parameters`: gathered weights are let go only beyond so many."""
PREFETCH_ELEMENTS = 50_000_000
"""DeepSpeed's `stage3_prefetch_bucket_size`: weights of the next block, gathered while this one computes."""

CPU_RUNTIME_BYTES = 80 * MIB
"""What torch's optimizers and CPU kernels load when a training begins, measured."""
TRANSFORMERS_BYTES = 100 * MIB
"""What `transformers` loads beside that with its first network, measured."""
STEP_COPIES = {"adagrad": 2}
"""Copies of the largest tensor that an optimizer makes in its step; the fused ones make none."""
CPU_PROCESS_BYTES = 700 * MIB
"""Python with torch, transformers and Ray, before a training begins."""
GPU_PROCESS_BYTES = 1536 * MIB
"""CUDA context, NCCL's buffers and cuBLAS workspaces, which torch's own counter does not see."""
GPU_FRAGMENTATION = 0.05
"""Blocks that torch's caching allocator holds and cannot use."""


@dataclass(frozen=True)
class Setting:
    """How a training runs, as far as memory goes.

    Attributes:
        optimizer: Name in the spec.
        precision: Of the multiplications; weights stay fp32 (torch autocast).
        sharding: Who holds what.
        micro_batch_size: Samples a worker takes at once.
        accumulation: Micro batches per optimizer step.
        checkpointing: Whether activations inside the blocks are computed twice instead of kept.
        device: What the workers run on.
        validation_batch: Samples of a validation batch; 0 leaves it out.
        data_bytes: Of samples that are kept in memory.
        averaged: Whether an average of the weights is kept beside them.
    """

    optimizer: str
    precision: Literal["fp32", "bf16"]
    sharding: Sharding
    micro_batch_size: int
    accumulation: int = 1
    checkpointing: bool = False
    device: Literal["cpu", "cuda"] = "cuda"
    validation_batch: int = 0
    data_bytes: int = 0
    averaged: bool = False


@dataclass(frozen=True)
class MemoryPrediction:
    """A worker's peak in bytes.

    Attributes:
        states: Weights, gradients and optimizer state.
        activations: What training, validation or copying the best weights needs beyond the states at the peak.
        buffers: Communication buckets and gathered weights.
        overhead: Fragmentation, what kernels load, samples kept in memory, and an average of the weights.
        process: What the process takes before it trains; not part of what a training measures.
    """

    states: StateBytes
    activations: int
    buffers: int
    overhead: int
    process: int

    @property
    def training_bytes(self) -> int:
        """The peak that a training measures."""
        return self.states.device + self.activations + self.buffers + self.overhead

    @property
    def device_bytes(self) -> int:
        """What the device must have."""
        return self.training_bytes + self.process


def predict_memory(sizes: NetworkSizes, step: StepMemory, validation: StepMemory, setting: Setting) -> MemoryPrediction:
    """The peak of one worker.

    Args:
        sizes: The network's parameters.
        step: Rehearsals of a training step as the setting runs it.
        validation: The same without a backward pass.
        setting: How it runs.
    """
    states = state_bytes(sizes.parameters, setting.optimizer, setting.sharding, whole=sizes.small, frozen=sizes.frozen)
    training = training_peak(states, step, setting)
    on_cpu = setting.device == "cpu"
    later = after_training(sizes, step, validation, setting) if setting.validation_batch else 0
    stepping = states.gradients + STEP_COPIES.get(setting.optimizer, 0) * FP32_BYTES * sizes.largest_block
    moving = max(training, later, stepping)
    buffers = buffer_bytes(sizes, setting)
    if setting.sharding.stage < 2:
        # Gradients are reduced after the backward pass, when the activations are gone.
        buffers = max(0, buffers - (moving - states.gradients))
    kept = setting.data_bytes + (FP32_BYTES * sizes.trained if setting.averaged else 0)
    return MemoryPrediction(
        states=states,
        activations=max(0, moving - states.gradients),
        buffers=buffers,
        overhead=kept + (runtime_bytes(sizes) if on_cpu else int(moving * GPU_FRAGMENTATION)),
        process=CPU_PROCESS_BYTES if on_cpu else GPU_PROCESS_BYTES,
    )


def after_training(sizes: NetworkSizes, step: StepMemory, validation: StepMemory, setting: Setting) -> int:
    """Validation, and keeping the best weights: copied to the machine's memory, and once more on their way to the file.

    On a CPU both come on top of the heap that training has left behind.
    """
    if setting.device != "cpu":
        return validation.peak(setting.validation_batch, 0.0)
    heap = max(step.heap(setting.micro_batch_size), validation.heap(setting.validation_batch))
    copies = 2 * FP32_BYTES * sizes.parameters
    return heap + max(validation.mapped(setting.validation_batch), copies)


def runtime_bytes(sizes: NetworkSizes) -> int:
    """What the libraries load on a CPU when a training begins."""
    return CPU_RUNTIME_BYTES + (TRANSFORMERS_BYTES if sizes.from_transformers else 0)


def training_peak(states: StateBytes, step: StepMemory, setting: Setting) -> int:
    """Gradients and activations at once.

    Without sharded gradients these appear while the activations go; with accumulation those of the micro batch before
    are there from the start.
    """
    if setting.sharding.stage < 2 and setting.accumulation == 1:
        return max(states.gradients, step.peak(setting.micro_batch_size, 1.0))
    return states.gradients + step.peak(setting.micro_batch_size, 0.0)


def buffer_bytes(sizes: NetworkSizes, setting: Setting) -> int:
    """Communication buckets, and under stage 3 the weights that are gathered at once."""
    sharding = setting.sharding
    if not sharding.deepspeed:
        return 0
    whole_bucket = setting.device == "cuda" and sharding.stage > 0
    bucket = REDUCE_BUCKET_ELEMENTS if whole_bucket else min(sizes.trained, REDUCE_BUCKET_ELEMENTS)
    if sharding.stage < 3:
        return bucket * FP32_BYTES
    sent_bytes = 2 if setting.precision == "bf16" else FP32_BYTES
    gathered = min(sizes.parameters, max(MAX_LIVE_PARAMETERS, sizes.largest_block + PREFETCH_ELEMENTS))
    return (bucket + (gathered if sharding.workers > 1 else 0)) * sent_bytes
