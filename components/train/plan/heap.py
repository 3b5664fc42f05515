"""What blocks cost in the C library's heap: a replay of a step's allocations through a model of glibc's malloc.

A freed block stays with the process, and is used again only for a smaller one: torch aligns its blocks, and so asks for
more than a hole of the same size has. This and small objects between the blocks make a heap larger than what is alive.

Source: glibc 2.36, malloc/malloc.c (`_int_malloc`, `_int_memalign`, `sysmalloc`, `systrim`).
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

FIRST_THRESHOLD_BYTES = 128 << 10
"""Blocks from this size on are mapped by themselves, if the heap has no hole for them (M_MMAP_THRESHOLD)."""
MAPPED_FROM_BYTES = 32 << 20
"""The threshold rises to the largest block that was given back, up to this (DEFAULT_MMAP_THRESHOLD_MAX). A block of
just 32 MiB is above it, with its header."""
PAD_BYTES = 128 << 10
"""What the heap is extended by beyond what is asked for (M_TOP_PAD)."""
ALIGNMENT_BYTES = 96
"""What `posix_memalign(64)` asks for beyond the block; the rest goes back."""
PIN_EVERY = 8
"""Blocks of the first step for one small object between them that stays (the optimizer's, autograd's, Python's own), so
that the holes around it never become one. Found on the cases of `make bench-plan`."""
RECOMPUTED_PIN_EVERY = 2
"""The same in the forward pass with activation checkpointing: its blocks go while autograd's nodes between them stay,
so that hardly a hole fits the next layer's blocks."""
PIN_BYTES = 64
REPLAYED_STEPS = 3
REPLAYED_PARTS = 4
"""Micro batches of a step that are replayed; more change nothing."""

Kind = Literal["made", "freed", "gradient"]


@dataclass(frozen=True)
class Event:
    """Something that happens to a block: it is made, freed, or turns out to be a finished gradient."""

    kind: Kind
    block: int
    size_bytes: int = 0


class Heap:
    """A process's blocks: those in the heap, and those mapped by themselves.

    Attributes:
        peak_bytes: Most bytes that the process held at once.
    """

    def __init__(self) -> None:
        self.top = self.end = self.mapped = self.peak_bytes = 0
        self.threshold = FIRST_THRESHOLD_BYTES
        self.blocks: dict[object, tuple[int | None, int]] = {}  # address (None: mapped) and size
        self.holes: list[tuple[int, int]] = []  # (size, address), sorted: the smallest that suffices is taken
        self.hole_at: dict[int, int] = {}  # address -> size
        self.hole_before: dict[int, int] = {}  # end -> address
        self.pin_every = 0
        self.made = 0

    def allocate(self, block: object, size_bytes: int) -> None:
        """Takes a hole, the top of the heap, pages of its own, or more heap, in this order."""
        size = round_up(size_bytes, 16) + 16
        needed = size + ALIGNMENT_BYTES
        found = bisect_left(self.holes, (needed, -1))
        if found < len(self.holes):
            address = self.holes[found][1]
            rest = self._take_hole(address) - size
            if rest > ALIGNMENT_BYTES:
                self._add_hole(address + size, rest)
            else:
                size += rest
        elif self.end - self.top < needed and needed >= self.threshold:
            self.blocks[block] = (None, round_up(size, 4096))
            self.mapped += round_up(size, 4096)
            self._note()
            return
        else:
            address, self.top = self.top, self.top + size
            if self.end < address + needed:
                self.end = round_up(address + needed + PAD_BYTES, 4096)
        self.blocks[block] = (address, size - self._pin(size))
        self._note()

    def free(self, block: object) -> None:
        """Gives a block back: to the system if it was mapped, else to the holes and the top beside it."""
        address, size = self.blocks.pop(block)
        if address is None:
            self.mapped -= size
            if size <= MAPPED_FROM_BYTES:
                self.threshold = max(self.threshold, size)
            return
        if address in self.hole_before:
            address, before = self.hole_before[address], address
            size += self._take_hole(address)
            assert address < before
        if address + size in self.hole_at:
            size += self._take_hole(address + size)
        if address + size == self.top:
            self.top = address
        else:
            self._add_hole(address, size)
        if self.end - self.top > 2 * self.threshold:
            self.end = round_up(self.top + PAD_BYTES, 4096)

    def _pin(self, size: int) -> int:
        """Bytes at a block's end that stay when it goes."""
        self.made += 1
        return PIN_BYTES if self.pin_every and self.made % self.pin_every == 0 and size > 2 * PIN_BYTES else 0

    def _note(self) -> None:
        self.peak_bytes = max(self.peak_bytes, self.end + self.mapped)

    def _add_hole(self, address: int, size: int) -> None:
        insort(self.holes, (size, address))
        self.hole_at[address], self.hole_before[address + size] = size, address

    def _take_hole(self, address: int) -> int:
        size = self.hole_at.pop(address)
        del self.hole_before[address + size]
        del self.holes[bisect_left(self.holes, (size, address))]
        return size


@dataclass(frozen=True)
class Replay:
    """How a training's steps follow one another.

    Attributes:
        moments: fp32 numbers a parameter that the optimizer makes in its first step.
        accumulation: Micro batches a step.
        keeps_gradients: Whether finished gradients stay until the step ends; else they are moved elsewhere at once.
        checkpointing: Whether the forward pass frees the activations.
    """

    moments: int
    accumulation: int = 1
    keeps_gradients: bool = True
    checkpointing: bool = False


def training_bytes(events: Sequence[Event], replay: Replay) -> int:
    """Most bytes at once in the first steps, with gradients and moments, without the weights.

    Args:
        events: Of one micro batch.
        replay: How steps follow.
    """
    heap = Heap()
    heap.pin_every = RECOMPUTED_PIN_EVERY if replay.checkpointing else PIN_EVERY
    for step in range(REPLAYED_STEPS):
        gradients: list[tuple[object, int]] = []
        for part in range(min(replay.accumulation, REPLAYED_PARTS)):
            added = part > 0 or not replay.keeps_gradients
            gradients += replay_events(heap, events, (step, part), added)
        if step == 0:
            for block, size_bytes in gradients:
                for moment in range(replay.moments):
                    heap.allocate((block, moment), size_bytes)
        for block, _ in gradients:
            heap.free(block)
        heap.pin_every = 0
    return heap.peak_bytes


def validation_bytes(events: Sequence[Event]) -> int:
    """Most bytes at once in a validation batch: the heap's holes were given back before."""
    heap = Heap()
    heap.threshold = MAPPED_FROM_BYTES
    replay_events(heap, events, "validation", added=False)
    return heap.peak_bytes


def replay_events(heap: Heap, events: Sequence[Event], name: object, added: bool) -> list[tuple[object, int]]:
    """One micro batch; gives the gradients that are left, and their bytes.

    Args:
        name: Of the micro batch, as its blocks have the same numbers as another's.
        added: Whether a finished gradient is added to what is there already, and goes.
    """
    alive: dict[object, None] = {}
    gradients: list[tuple[object, int]] = []
    for event in events:
        block = (name, event.block)
        if event.kind == "made":
            heap.allocate(block, event.size_bytes)
            alive[block] = None
        elif block in alive:
            if event.kind == "gradient":  # the backward pass frees the nodes
                heap.pin_every = max(heap.pin_every, PIN_EVERY) if heap.pin_every else 0
            del alive[block]
            if event.kind == "freed" or added:
                heap.free(block)
            else:
                gradients.append((block, event.size_bytes))
    for left in alive:
        heap.free(left)
    return gradients


def round_up(size: int, step: int) -> int:
    return -(-size // step) * step
