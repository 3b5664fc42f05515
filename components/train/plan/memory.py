"""A worker's peak memory: states, activations, buffers and what the libraries take.

prediction = predict_memory(sizes, steps, setting)
prediction.device_bytes <= memory_bytes
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from components.train.nvme import STATE_BUFFERS, WEIGHT_BUFFERS, sub_group_elements
from components.train.plan.heap import Replay
from components.train.plan.network import NetworkSizes
from components.train.plan.states import FP32_BYTES, MOMENT_BYTES, Sharding, StateBytes, state_bytes

if TYPE_CHECKING:
    from components.train.plan.rehearsal import StepMemory

MIB = 1 << 20

REDUCE_BUCKET_ELEMENTS = 500_000_000
"""DeepSpeed's `reduce_bucket_size`: gradients are put together in it to be sent. A GPU allocates it whole, a CPU only
what is written."""
CPU_BUCKET_ELEMENTS = 5_000_000
"""The same on a CPU, stages 1 and 2. It is allocated at every step: from 32 MiB on malloc takes fresh pages from the
kernel each time, whose first use costs more than sending in parts."""
MAX_LIVE_PARAMETERS = 1_000_000_000
"""DeepSpeed's `stage3_max_live_parameters`: gathered weights are let go only beyond so many."""
PREFETCH_ELEMENTS = 50_000_000
"""DeepSpeed's `stage3_prefetch_bucket_size`: weights of the next block, gathered while this one computes."""

DATA_LIBRARY_BYTES = 75 * MIB
"""What reading rows loads with the first split; a language model's tokens are a plain file. Measured."""
OPTIMIZER_LIBRARY_BYTES = 70 * MIB
"""What torch loads with the first optimizer (its compiler, sympy), unless `transformers` has. Measured."""
TRANSFORMERS_BYTES = 118 * MIB
"""What `transformers` loads with its first network, that compiler among it, without accelerate and scipy, which
`prepare_transformers` leaves out. Measured: 116 to 119 MiB."""
KERNEL_BYTES = 25 * MIB
"""Code of the CPU kernels, read in as they first run, and their threads' buffers. Measured."""
PACKED_SHARE = 0.5
PACKED_MOST_BYTES = 64 * MIB
"""MKL multiplies packed copies of parts of a matrix, and keeps their buffers: about half of the largest weight's size,
up to this. Measured."""
DEEPSPEED_BYTES = 40 * MIB
"""What DeepSpeed loads. Measured on a CPU, where it also holds the weights once more, in its flat buffers."""
MUON_COPIES = 2
"""Copies of the hidden matrices in Muon's step: looked ahead, scaled, and their updates, less the second moment, which
is counted and which they do not have."""
MUON_SQUARES = 5
"""Square matrices beside them that Muon's iterations hold at once."""
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
        saved_beside: Whether checkpoints are copied, to be written while training goes on.
        reads_rows: Whether samples are rows of a table, and not windows of a text.
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
    saved_beside: bool = False
    reads_rows: bool = True


@dataclass(frozen=True)
class MemoryPrediction:
    """A worker's peak in bytes.

    Attributes:
        states: Weights, gradients and optimizer state.
        activations: What training, validation or the optimizer's step needs beyond the states at the peak.
        buffers: Communication buckets and gathered weights.
        overhead: Fragmentation, what kernels load, samples kept in memory, an average of the weights, and on a CPU the
            copy that a checkpoint is written from.
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
    states = replace(states, host=states.host + swap_buffer_bytes(sizes, setting.sharding))
    on_cpu = setting.device == "cpu"
    highest = cpu_peak if on_cpu else gpu_peak
    moving = max(highest(states, step, validation, setting), stepping_peak(states, sizes, setting))
    buffers = buffer_bytes(sizes, setting)
    if setting.sharding.stage < 2:
        # Gradients are reduced after the backward pass, when the activations are gone.
        buffers = max(0, buffers - (moving - states.gradients))
    average = FP32_BYTES * sizes.trained if setting.averaged else 0
    kept = setting.data_bytes + average
    if setting.saved_beside and on_cpu:
        kept += states.weights + states.optimizer + average
    if on_cpu:
        kept += states.host  # the same memory
        kept += states.weights if setting.sharding.deepspeed and setting.sharding.stage else 0  # flat buffers
    return MemoryPrediction(
        states=states,
        activations=max(0, moving - states.gradients),
        buffers=buffers,
        overhead=kept + (runtime_bytes(sizes, setting) if on_cpu else int(moving * GPU_FRAGMENTATION)),
        process=CPU_PROCESS_BYTES if on_cpu else GPU_PROCESS_BYTES,
    )


def cpu_peak(states: StateBytes, step: StepMemory, validation: StepMemory, setting: Setting) -> int:
    """Gradients and activations at once, as the C library's heap holds them, or a validation batch.

    Plain torch's optimizer state lies in the same heap, among the blocks of the first step.
    """
    in_heap = not setting.sharding.deepspeed
    replay = Replay(
        moments=MOMENT_BYTES[setting.optimizer] // FP32_BYTES if in_heap else 0,
        accumulation=setting.accumulation,
        keeps_gradients=setting.sharding.stage < 2,
        checkpointing=setting.checkpointing,
    )
    training = step.training_bytes(setting.micro_batch_size, replay) - (states.optimizer if in_heap else 0)
    if not replay.keeps_gradients:
        training += states.gradients
    return max(training, validation.validation_bytes(setting.validation_batch) if setting.validation_batch else 0)


def gpu_peak(states: StateBytes, step: StepMemory, validation: StepMemory, setting: Setting) -> int:
    """Gradients and activations at once, or a validation batch.

    Without sharded gradients these appear while the activations go; with accumulation those of the micro batch before
    are there from the start.
    """
    if setting.sharding.stage < 2 and setting.accumulation == 1:
        training = max(states.gradients, step.peak(setting.micro_batch_size, 1.0))
    else:
        training = states.gradients + step.peak(setting.micro_batch_size, 0.0)
    return max(training, validation.peak(setting.validation_batch, 0.0) if setting.validation_batch else 0)


def stepping_peak(states: StateBytes, sizes: NetworkSizes, setting: Setting) -> int:
    """Gradients and what the optimizer makes in its step, when the activations are gone; fused ones make nothing."""
    copies = 0
    if setting.optimizer == "muon":
        copies = MUON_COPIES * sizes.hidden + MUON_SQUARES * sizes.hidden_squares
    elif setting.optimizer == "adagrad" and setting.device != "cpu":
        copies = 2 * sizes.largest_block  # its fused form is for CPUs alone
    return states.gradients + FP32_BYTES * copies


def runtime_bytes(sizes: NetworkSizes, setting: Setting) -> int:
    """What libraries load and keep on a CPU once a training begins."""
    packed = min(PACKED_MOST_BYTES, int(PACKED_SHARE * FP32_BYTES * sizes.largest_tensor))
    library = TRANSFORMERS_BYTES if sizes.from_transformers else OPTIMIZER_LIBRARY_BYTES
    if setting.sharding.deepspeed:
        library += DEEPSPEED_BYTES
    return library + KERNEL_BYTES + packed + (DATA_LIBRARY_BYTES if setting.reads_rows else 0)


def swap_buffer_bytes(sizes: NetworkSizes, sharding: Sharding) -> int:
    """Locked memory through which DeepSpeed reads and writes what lies on NVMe."""
    if sharding.offload_optimizer != "nvme":
        return 0
    weights_too = sharding.offload_parameters == "nvme"
    largest = -(-sizes.largest_tensor // sharding.workers)
    group = min(sub_group_elements(weights_too, sharding.workers) + largest, -(-sizes.trained // sharding.workers))
    # Updated weights go to the disk through room for a sub-group of all workers.
    moving = max(WEIGHT_BUFFERS, sizes.most_tensors) * largest + group * sharding.workers if weights_too else 0
    return FP32_BYTES * (STATE_BUFFERS * group + moving)


def buffer_bytes(sizes: NetworkSizes, setting: Setting) -> int:
    """Communication buckets, and under stage 3 the weights that are gathered at once."""
    sharding = setting.sharding
    if not sharding.deepspeed:
        return 0
    whole_bucket = setting.device == "cuda" and sharding.stage > 0
    in_parts = setting.device == "cpu" and sharding.stage in (1, 2)
    largest = CPU_BUCKET_ELEMENTS if in_parts else REDUCE_BUCKET_ELEMENTS
    bucket = largest if whole_bucket else min(sizes.trained, largest)
    if sharding.stage < 3:
        return bucket * FP32_BYTES
    sent_bytes = 2 if setting.precision == "bf16" else FP32_BYTES
    gathered = min(sizes.parameters, max(MAX_LIVE_PARAMETERS, sizes.largest_block + PREFETCH_ELEMENTS))
    return (bucket + (gathered if sharding.workers > 1 else 0)) * sent_bytes
