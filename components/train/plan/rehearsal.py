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
from components.train.plan import heap
from components.train.plan.heap import Event, Replay
from components.train.plan.network import Workload, build_empty

REHEARSED_LAYERS = (2, 4)
REHEARSED_BATCHES = (2, 4)
FORWARD_NUMBERS = 5
"""Numbers that oneDNN's LSTM keeps for each number of its output: four gates and the cell. It asks for three times as
much: another part is written by the backward pass (`backward_scratch_bytes`), the rest stays untouched. Measured."""


@dataclass(frozen=True)
class Rehearsal:
    """What was alive in the course of a step, beside weights and optimizer state.

    Attributes:
        highest: Gradient bytes -> most activation bytes while the finished gradients had that size.
        events: All that happened to its blocks, in order.
    """

    highest: Mapping[int, int]
    events: tuple[Event, ...] = ()

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

    def __init__(self, known: Iterator[torch.Tensor]) -> None:
        super().__init__()
        self.known = {tensor.untyped_storage()._cdata for tensor in known}
        self.live: dict[int, tuple[int, int]] = {}  # storage -> its number and bytes
        self.marked: set[int] = set()
        self.activations = self.gradients = 0
        self.highest: dict[int, int] = {0: 0}
        self.events: list[Event] = []
        self.made = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # A fake tensor has no values. Code that looks for one asks whether a mask is all ones: it is not.
        if func is torch.ops.aten._local_scalar_dense.default:
            return 0
        result = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.mkldnn_rnn_layer.default:  # its fake workspace is empty
            self.add(result[3].untyped_storage(), FORWARD_NUMBERS * result[0].numel() * result[0].itemsize)
        if func is torch.ops.aten.mkldnn_rnn_layer_backward.default:
            self.pass_by(backward_scratch_bytes(result[0], hidden=result[2].shape[1]))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self.add(leaf.untyped_storage(), leaf.untyped_storage().nbytes())
        return result

    def add(self, storage: torch.UntypedStorage, size_bytes: int) -> None:
        key = storage._cdata
        if key in self.known or key in self.live:
            return
        self.made += 1
        self.live[key] = (self.made, size_bytes)
        self.events.append(Event("made", self.made, size_bytes))
        self.activations += size_bytes
        self.highest[self.gradients] = max(self.highest.get(self.gradients, 0), self.activations)
        weakref.finalize(storage, self.drop, key)

    def pass_by(self, size_bytes: int) -> None:
        """Books what an operation needs while it runs."""
        self.made += 1
        self.events += [Event("made", self.made, size_bytes), Event("freed", self.made)]
        self.highest[self.gradients] = max(self.highest.get(self.gradients, 0), self.activations + size_bytes)

    def drop(self, key: int) -> None:
        number, size = self.live.pop(key)
        self.events.append(Event("freed", number))
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
            number, size = self.live[key]
            self.marked.add(key)
            self.events.append(Event("gradient", number, size))
            self.activations -= size
            self.gradients += size
        self.highest.setdefault(self.gradients, self.activations)

    def rehearsal(self) -> Rehearsal:
        return Rehearsal(dict(self.highest), tuple(self.events))


def backward_scratch_bytes(inputs: torch.Tensor, hidden: int) -> int:
    """What oneDNN's LSTM writes to its workspace for the gradients of a layer and direction; inputs (T, B, width)."""
    steps, batch, width = inputs.shape
    return inputs.itemsize * steps * batch * (4 * hidden + 3 * max(0, width - hidden))


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
        with Ledger(iter(known)) as ledger, attention(step):
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
    if step.backward:
        # The logits have no name here, as they have none in the loop: they are gone before the backward pass.
        task.loss(run_forward(module, inputs, step), labels, 0.0).backward()
    else:
        task.outputs(run_forward(module, inputs, step), labels)


def run_forward(module: nn.Module, inputs: Mapping[str, torch.Tensor], step: Step) -> torch.Tensor:
    with torch.set_grad_enabled(step.backward), torch.autocast("cpu", torch.bfloat16, enabled=step.bf16):
        return module(**inputs).float()


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

    def training_bytes(self, batch: int, replay: Replay) -> int:
        """Most bytes at once on a CPU over a few steps; see `heap.training_bytes`."""
        return self._drawn(lambda layers: heap.training_bytes(self.rehearse(layers, batch).events, replay))

    def validation_bytes(self, batch: int) -> int:
        """Most bytes at once on a CPU, rehearsed without a backward pass."""
        return self._drawn(lambda layers: heap.validation_bytes(self.rehearse(layers, batch).events))

    def _drawn(self, count: Callable[[int | None], int]) -> int:
        """A number for all layers, from the numbers for a few."""
        layers = self.workload.layers
        if layers is None or layers <= max(REHEARSED_LAYERS):
            return count(layers)
        few, more = REHEARSED_LAYERS
        return straight_line(REHEARSED_LAYERS, (count(few), count(more)), layers)

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
