"""One training step on fake tensors: every allocation of forward and backward pass is booked, none is made.

The real network runs with the real shapes and types, so what autograd keeps (attention, casts of autocast, logits)
needs no formula by architecture. Deep networks are rehearsed with a few layers and continued in a straight line.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from components.models.build import inner_network
from components.tasks import get_task
from components.train.plan.network import Workload, build_empty

REHEARSED_LAYERS = (2, 4)
REHEARSED_BATCHES = (2, 4)
HEAP_BLOCK_BYTES = 32 << 20
"""Larger blocks are mapped by themselves and given back at once (glibc's DEFAULT_MMAP_THRESHOLD_MAX)."""
HEAP_FACTOR = 1.35
"""Bytes of the heap for each byte of blocks in it, measured with `make bench-plan`."""


@dataclass(frozen=True)
class Rehearsal:
    """What was alive in the course of a step, beside weights and optimizer state.

    Attributes:
        highest: Gradient bytes -> most activation bytes while the finished gradients had that size.
        heap: Most bytes at once in blocks small enough for the C library's heap, at what they cost there.
        mapped: Most bytes at once in larger blocks.
    """

    highest: Mapping[int, int]
    heap: int = 0
    mapped: int = 0

    def peaks(self, gradient_share: float) -> tuple[int, int]:
        """Most bytes at once in the first and in the second half of the backward pass.

        In the first the activations weigh most, in the second the gradients; each grows evenly with the layers, their
        maximum does not.

        Args:
            gradient_share: Share of the finished gradients that a worker keeps.
        """
        half = max(self.highest) / 2
        early = [a + int(gradient_share * g) for g, a in self.highest.items() if g <= half]
        late = [a + int(gradient_share * g) for g, a in self.highest.items() if g >= half]
        return max(early), max(late)


class Ledger(TorchDispatchMode):
    """Books every storage that an operation makes until it is freed."""

    def __init__(self, known: Iterator[torch.Tensor], heap: bool) -> None:
        super().__init__()
        self.heap = heap
        self.known = {tensor.untyped_storage()._cdata for tensor in known}
        self.live: dict[int, int] = {}
        self.large: dict[int, int] = {}
        self.marked: set[int] = set()
        self.activations = self.gradients = self.mapped = self.most_heap = self.most_mapped = 0
        self.highest: dict[int, int] = {0: 0}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # A fake tensor has no values. Code that looks for one asks whether a mask is all ones: it is not.
        if func is torch.ops.aten._local_scalar_dense.default:
            return 0
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self.add(leaf.untyped_storage())
        return result

    def add(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self.known or key in self.live:
            return
        self.live[key] = heap_bytes(storage.nbytes()) if self.heap else storage.nbytes()
        self.activations += self.live[key]
        if storage.nbytes() > HEAP_BLOCK_BYTES:
            self.large[key] = storage.nbytes()
            self.mapped += storage.nbytes()
        self.most_mapped = max(self.most_mapped, self.mapped)
        self.most_heap = max(self.most_heap, self.activations + self.gradients - self.mapped)
        self.highest[self.gradients] = max(self.highest.get(self.gradients, 0), self.activations)
        weakref.finalize(storage, self.drop, key)

    def drop(self, key: int) -> None:
        size = self.live.pop(key)
        self.mapped -= self.large.pop(key, 0)
        if key in self.marked:
            self.marked.remove(key)
            self.gradients -= size
        else:
            self.activations -= size

    def mark_gradient(self, parameter: torch.Tensor) -> None:
        """Books a finished gradient as one."""
        assert parameter.grad is not None
        key = parameter.grad.untyped_storage()._cdata
        if key in self.live and key not in self.marked:
            self.marked.add(key)
            self.activations -= self.live[key]
            self.gradients += self.live[key]
        self.highest.setdefault(self.gradients, self.activations)

    def rehearsal(self) -> Rehearsal:
        return Rehearsal(dict(self.highest), self.most_heap, self.most_mapped)


def heap_bytes(size_bytes: int) -> int:
    """What a block costs in the C library's heap, from which freed blocks seldom go back to the system."""
    return size_bytes if size_bytes > HEAP_BLOCK_BYTES else int(HEAP_FACTOR * size_bytes)


@dataclass(frozen=True)
class Step:
    """How a step is run.

    Attributes:
        bf16: Whether under autocast to bf16.
        bf16_weights: Whether the weights come in bf16 already, as ZeRO-3 gathers them; else autocast keeps a bf16 copy
            of each beside the fp32 one until the backward pass is through.
        checkpointing: Whether only the inputs of the blocks are kept, and their insides computed again.
        gpu: Whether on a GPU: attention runs in one kernel, and freed blocks are used again.
        backward: False rehearses a validation pass.
    """

    bf16: bool
    bf16_weights: bool = False
    checkpointing: bool = False
    gpu: bool = False
    backward: bool = True


def rehearse(workload: Workload, batch: int, step: Step) -> Rehearsal:
    """Runs one step of `batch` samples on fake tensors."""
    with FakeTensorMode():
        with default_dtype(torch.bfloat16 if step.bf16_weights else torch.float32):
            module = build_empty(workload).train(step.backward)
        if step.checkpointing:
            checkpoint_blocks(module)
        inputs, labels = example_batch(workload, batch)
        known = (*module.parameters(), *module.buffers(), *inputs.values(), labels)
        with Ledger(iter(known), heap=not step.gpu) as ledger, attention(step):
            for parameter in module.parameters():
                parameter.register_post_accumulate_grad_hook(ledger.mark_gradient)
            run_step(workload, module, inputs, labels, step)
        return ledger.rehearsal()


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """The type that new weights get."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def attention(step: Step) -> Iterator[None]:
    """Makes attention keep what it keeps on the device that is planned for.

    A GPU draws dropout inside the kernel; a CPU keeps all T x T weights for it. A mode would not do: checkpointing
    computes the blocks again from within the backward pass, where modes are off.
    """
    original = functional.scaled_dot_product_attention
    if step.gpu:
        functional.scaled_dot_product_attention = without_dropout(original)
    try:
        yield
    finally:
        functional.scaled_dot_product_attention = original


def without_dropout(kernel: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    return lambda *tensors, **options: kernel(*tensors, **{**options, "dropout_p": 0.0})


def run_step(
    workload: Workload, module: nn.Module, inputs: Mapping[str, torch.Tensor], labels: torch.Tensor, step: Step
) -> None:
    """Forward, loss and backward as the loop does them, or what `evaluate` does with a batch."""
    task = get_task(workload.task)
    with torch.set_grad_enabled(step.backward), torch.autocast("cpu", torch.bfloat16, enabled=step.bf16):
        logits = module(**inputs).float()
    if step.backward:
        task.loss(logits, labels, 0.0).backward()
    else:
        task.outputs(logits, labels)


def checkpoint_blocks(module: nn.Module) -> None:
    """Switches on activation checkpointing in the `transformers` network inside `module`."""
    # States of generators and comparisons of tensors need values, which fake tensors do not have.
    options = {"use_reentrant": False, "preserve_rng_state": False, "determinism_check": "none"}
    inner_network(module).activation_checkpointing_enable(activation_checkpointing_kwargs=options)


def example_batch(workload: Workload, batch: int) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Inputs and labels of the right shapes, all zeros or ones."""
    sizes = workload.inputs
    if "image_size" in sizes:
        pixels = torch.zeros(batch, sizes["channels"], sizes["image_size"], sizes["image_size"])
        return {"pixel_values": pixels}, torch.zeros(batch, dtype=torch.int64)
    input_ids = torch.zeros(batch, sizes["max_length"], dtype=torch.int64)
    if workload.is_decoder:
        return {"input_ids": input_ids}, torch.zeros_like(input_ids)
    inputs = {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids)}
    if "max_target_length" in sizes:
        target = torch.zeros(batch, sizes["max_target_length"], dtype=torch.int64)
        return {**inputs, "decoder_input_ids": target}, torch.zeros_like(target)
    return inputs, torch.zeros(batch, dtype=torch.int64)


class StepMemory:
    """Bytes that a micro batch needs beside weights and optimizer state, for any number of samples.

    Both the bytes of a layer and those of a sample are constant, so a few small rehearsals give all others.

    Args:
        workload: What is trained.
        step: How.
        exact: Whether each size is rehearsed by itself, which is quicker where only one is asked for.
    """

    def __init__(self, workload: Workload, step: Step, exact: bool = False) -> None:
        self.workload, self.step, self.exact = workload, step, exact
        self.rehearse = cache(self._rehearse)

    def peak(self, batch: int, gradient_share: float) -> int:
        """Most bytes at once; see `Rehearsal.peaks`."""
        layers = self.workload.layers
        if layers is None or layers <= max(REHEARSED_LAYERS):
            return max(self._with_batch(layers, batch).peaks(gradient_share))
        few, more = (self._with_batch(number, batch).peaks(gradient_share) for number in REHEARSED_LAYERS)
        return max(straight_line(REHEARSED_LAYERS, halves, layers) for halves in zip(few, more, strict=True))

    def heap(self, batch: int) -> int:
        """Most bytes in the C library's heap, which keeps them."""
        return self._blocks("heap", batch)

    def mapped(self, batch: int) -> int:
        """Most bytes in blocks that are given back at once."""
        return self._blocks("mapped", batch)

    def _blocks(self, kind: str, batch: int) -> int:
        layers = self.workload.layers
        if layers is None or layers <= max(REHEARSED_LAYERS):
            return getattr(self.rehearse(layers, batch), kind)
        few, more = (getattr(self.rehearse(number, batch), kind) for number in REHEARSED_LAYERS)
        return straight_line(REHEARSED_LAYERS, (few, more), layers)

    def _with_batch(self, layers: int | None, batch: int) -> Rehearsal:
        if self.exact:
            return self.rehearse(layers, batch)
        few, more = (self.rehearse(layers, size).highest for size in REHEARSED_BATCHES)
        both = few.keys() & more.keys()
        return Rehearsal({size: straight_line(REHEARSED_BATCHES, (few[size], more[size]), batch) for size in both})

    def _rehearse(self, layers: int | None, batch: int) -> Rehearsal:
        workload = self.workload if layers is None else self.workload.with_layers(layers)
        return rehearse(workload, batch, self.step)


def straight_line(xs: tuple[int, int], ys: tuple[int, int], x: int) -> int:
    """The value at `x` of the line through two points, at least 0."""
    return max(0, ys[0] + (ys[1] - ys[0]) * (x - xs[0]) // (xs[1] - xs[0]))
