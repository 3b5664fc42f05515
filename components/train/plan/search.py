"""Which ZeRO stage, offload, micro batch and accumulation to train with, and one line on why for each choice.

Ways to train are tried from the quickest to the slowest. The first that holds a micro batch large enough to keep the
device busy is chosen; if none does, the first that holds any.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from components.errors import SpecError
from components.train.config import RESHARDED_OPTIMIZERS
from components.train.evaluation import largest_batch
from components.train.plan.memory import MemoryPrediction, Setting, predict_memory
from components.train.plan.network import NetworkSizes, Workload, count_parameters
from components.train.plan.states import Offload, Sharding

if TYPE_CHECKING:
    from components.train.plan.rehearsal import Step, StepMemory

GIB = 1 << 30
BUSY_TOKENS = 4096
"""Tokens a micro batch that keep a GPU's matrix units busy; with fewer, each weight is read for too little work."""


@dataclass(frozen=True)
class Machine:
    """What a worker gets.

    Attributes:
        device: What it computes on.
        memory_bytes: Of that device, for this worker alone.
        host_bytes: Of the machine's memory for this worker, where that is another; None is not known.
        nvme_bytes: Of its disk for this worker; None is not known, and then nothing is put there.
    """

    device: Literal["cpu", "cuda"]
    memory_bytes: int
    host_bytes: int | None = None
    nvme_bytes: int | None = None


@dataclass(frozen=True)
class Demand:
    """What is to be trained, whoever holds what.

    Attributes:
        workload: Network and sample.
        optimizer: Name in the spec.
        precision: Of activations.
        global_batch_size: Samples per optimizer step.
        workers: How many there are.
        averaged: Whether an average of the weights is kept.
        saved_beside: Whether checkpoints are copied, to be written while training goes on.
        fp32_products: Whether this machine's CPU multiplies bf16 in fp32.
    """

    workload: Workload
    optimizer: str
    precision: Literal["fp32", "bf16"]
    global_batch_size: int
    workers: int
    averaged: bool = False
    saved_beside: bool = False
    fp32_products: bool = False

    @property
    def samples_per_worker(self) -> int:
        """Of one optimizer step.

        Raises:
            SpecError: If the batch does not divide by the workers.
        """
        if self.global_batch_size % self.workers:
            above = -(-self.global_batch_size // self.workers) * self.workers
            raise SpecError(
                f"train.global_batch_size {self.global_batch_size} does not divide by {self.workers} workers; make it "
                f"a multiple, such as {above}.",
                field="train.global_batch_size",
            )
        return self.global_batch_size // self.workers


@dataclass(frozen=True)
class Option:
    """One way to train.

    Attributes:
        setting: How.
        memory: What a worker needs.
        fits: Whether the machine has that.
        reason: Why it fits or does not, in one line.
    """

    setting: Setting
    memory: MemoryPrediction
    fits: bool
    reason: str


@dataclass(frozen=True)
class Way:
    """A sharding with or without activation checkpointing, before the batch is divided."""

    stage: int
    checkpointing: bool = False
    offload_optimizer: Offload = "none"
    offload_parameters: Offload = "none"

    def __str__(self) -> str:
        parts = [f"ZeRO-{self.stage}"]
        if self.checkpointing:
            parts.append("checkpointing")
        if self.offload_optimizer != "none":
            parts.append(f"optimizer on {self.offload_optimizer}")
        if self.offload_parameters != "none":
            parts.append(f"weights on {self.offload_parameters}")
        return ", ".join(parts)


OFFLOADS = (
    Way(2, offload_optimizer="cpu"),
    Way(3, offload_optimizer="cpu"),
    Way(3, offload_optimizer="cpu", offload_parameters="cpu"),
)


DISK_OFFLOADS = (
    Way(3, offload_optimizer="nvme"),
    Way(3, offload_optimizer="nvme", offload_parameters="nvme"),
)


@dataclass
class Planner:
    """Predicts and searches for one demand on one machine; rehearsals are made once each."""

    demand: Demand
    machine: Machine
    exact: bool = False
    """Whether a single setting is asked about, so that nothing is gained by drawing lines."""
    steps: dict[Step, StepMemory] = field(default_factory=dict)

    @cached_property
    def sizes(self) -> NetworkSizes:
        return count_parameters(self.demand.workload)

    def options(self) -> list[Option]:
        """Each way to train with the largest micro batch that fits, from the quickest to the slowest."""
        return [self.best_option(way) for way in self.ways()]

    def choose(self, options: list[Option]) -> Option | None:
        """The quickest way that fits; None if none does. A disk is slower than any small micro batch."""
        wanted = busy_micro_batch(self.demand.samples_per_worker, self.demand.workload.tokens)
        fitting = [option for option in options if option.fits]
        quick = [option for option in fitting if option.setting.sharding.offload_optimizer != "nvme"]
        busy = [option for option in quick or fitting if option.setting.micro_batch_size >= wanted]
        return next(iter([*busy, *quick, *fitting]), None)

    def ways(self) -> Iterator[Way]:
        """Ways that can differ for this demand: alone there is nobody to share with."""
        stages = (0, 1, 2, 3) if self.demand.workers > 1 else (0,)
        offloads = OFFLOADS if self.machine.device == "cuda" else ()
        blocks = self.demand.workload.transformer is not None
        yield from (Way(stage) for stage in stages)
        if blocks:
            yield from (Way(stage, checkpointing=True) for stage in stages)
        if self.machine.nvme_bytes is not None and self.demand.optimizer in RESHARDED_OPTIMIZERS:
            offloads = (*offloads, *DISK_OFFLOADS)
        yield from (replace(way, checkpointing=blocks) for way in offloads)

    def best_option(self, way: Way) -> Option:
        """The way with the largest micro batch that fits, or with one sample if none does."""
        samples = self.demand.samples_per_worker
        for micro in reversed(divisors(samples)):
            option = self.judge(self.setting(way, micro))
            if option.fits or micro == 1:
                return option
        raise AssertionError("1 divides every number")

    def setting(self, way: Way, micro_batch_size: int) -> Setting:
        sharding = Sharding(way.stage, self.demand.workers, way.offload_optimizer, way.offload_parameters)
        accumulation = self.demand.samples_per_worker // micro_batch_size
        return Setting(
            optimizer=self.demand.optimizer,
            precision=self.demand.precision,
            sharding=sharding,
            micro_batch_size=micro_batch_size,
            accumulation=accumulation,
            checkpointing=way.checkpointing,
            device=self.machine.device,
            validation_batch=validation_batch(self.demand.workload),
            averaged=self.demand.averaged,
            saved_beside=self.demand.saved_beside,
            reads_rows=not self.demand.workload.is_decoder,
        )

    def judge(self, setting: Setting) -> Option:
        """Whether a setting fits the machine."""
        memory = self.predict(setting)
        lacking = memory.device_bytes - self.machine.memory_bytes
        batch = f"micro batch {setting.micro_batch_size} x {setting.accumulation}"
        if lacking > 0:
            return Option(
                setting, memory, False, f"{batch}: {gib(lacking)} too much for {gib(self.machine.memory_bytes)}"
            )
        host = self.machine.host_bytes
        if host is not None and memory.states.host > host:
            return Option(
                setting, memory, False, f"{batch}: the host lacks {gib(memory.states.host - host)} of {gib(host)}"
            )
        disk = self.machine.nvme_bytes
        if disk is not None and memory.states.nvme > disk:
            return Option(
                setting, memory, False, f"{batch}: the disk lacks {gib(memory.states.nvme - disk)} of {gib(disk)}"
            )
        return Option(setting, memory, True, f"{batch}: {gib(memory.device_bytes)} of {gib(self.machine.memory_bytes)}")

    def predict(self, setting: Setting) -> MemoryPrediction:
        from components.train.plan.rehearsal import Step

        # Widened for its products, bf16 leaves holes in the heap: measured, it takes what fp32 takes.
        widened = self.demand.fp32_products and setting.sharding.stage < 3
        bf16 = setting.precision == "bf16" and not widened
        gathered = bf16 and setting.sharding.stage == 3 and setting.sharding.workers > 1
        step = Step(bf16, gathered, setting.checkpointing, setting.device == "cuda")
        forward = replace(step, checkpointing=False, backward=False)
        return predict_memory(self.sizes, self.rehearsals(step), self.rehearsals(forward), setting)

    def rehearsals(self, step: Step) -> StepMemory:
        from components.train.plan.rehearsal import StepMemory

        # On a CPU the size of a block decides what it costs, so no line leads from few samples to many.
        exact = self.exact or self.machine.device == "cpu"
        return self.steps.setdefault(step, StepMemory(self.demand.workload, step, exact))


def validation_batch(workload: Workload) -> int:
    """Samples of a validation batch, as `evaluate` takes them from a large split."""
    return largest_batch(workload.label_tokens)


def name_way(setting: Setting) -> str:
    """`ZeRO-3, checkpointing, optimizer on cpu`."""
    sharding = setting.sharding
    return str(Way(sharding.stage, setting.checkpointing, sharding.offload_optimizer, sharding.offload_parameters))


def spec_changes(setting: Setting) -> dict[str, Any]:
    """The fields of the spec that make it train so, by dotted name."""
    sharding = setting.sharding
    changes: dict[str, Any] = {
        "train.zero.stage": sharding.stage,
        "train.gradient_accumulation_steps": setting.accumulation,
    }
    if sharding.offload_optimizer != "none":
        changes["train.zero.offload_optimizer"] = sharding.offload_optimizer
    if sharding.offload_parameters != "none":
        changes["train.zero.offload_parameters"] = sharding.offload_parameters
    if setting.checkpointing:
        changes["train.activation_checkpointing"] = True
    return changes


def busy_micro_batch(samples: int, tokens: int) -> int:
    """The smallest divisor of `samples` with enough tokens, else all samples."""
    return next((size for size in divisors(samples) if size * tokens >= BUSY_TOKENS), samples)


def divisors(number: int) -> list[int]:
    """In rising order."""
    low = [value for value in range(1, int(number**0.5) + 1) if number % value == 0]
    return sorted({*low, *(number // value for value in low)})


def gib(size_bytes: int) -> str:
    """`12.3 GiB`, or MiB below one."""
    return f"{size_bytes / GIB:.1f} GiB" if size_bytes >= GIB else f"{size_bytes / (1 << 20):.0f} MiB"
