"""What is looked at beside the steps: losses that leap, and workers that keep the others waiting."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median_low
from typing import TYPE_CHECKING

from components.train.job import warn
from components.train.order import epoch_order, micro_batch
from components.train.spikes import LossWatch

if TYPE_CHECKING:
    import torch

    from components.train.session import Session

LOOK_STEPS = 20
"""Steps whose losses are looked at together, in one exchange between the workers."""
SPIKES_TOLD = 5
STRAGGLER_RATIO = 1.5
STRAGGLER_DELAY_S = 0.005
"""A worker that is slower by less is no straggler, whatever the ratio: steps of a millisecond are never even."""


@dataclass
class Watch:
    """What a worker has seen of its steps.

    Attributes:
        losses: Of all workers together.
        unseen: Steps, and this worker's mean losses in them, that were not looked at yet.
        spikes_told: Warnings given so far.
        slow_before: The worker that was too slow in the round before.
        straggler_told: Whether a warning was given.
        sampling: Whether the next micro batch is timed; on a GPU each time costs a wait for it.
    """

    losses: LossWatch = field(default_factory=LossWatch)
    unseen: list[tuple[int, torch.Tensor]] = field(default_factory=list)
    spikes_told: int = 0
    slow_before: int | None = None
    straggler_told: bool = False
    sampling: bool = True


def note_loss(session: Session, loss: torch.Tensor) -> None:
    """Keeps the loss of the step that was just taken, and looks at those kept now and then."""
    session.watch.unseen.append((session.progress.step - 1, loss))
    if len(session.watch.unseen) == LOOK_STEPS:
        look_for_spikes(session)


def look_for_spikes(session: Session) -> None:
    """Tells and counts the steps whose loss leapt, among those not looked at; every rank calls it equally often."""
    import torch

    watch = session.watch
    if not watch.unseen:
        return
    steps = [step for step, _ in watch.unseen]
    losses = session.group.gather(torch.stack([loss.float() for _, loss in watch.unseen])).cpu()  # (workers, steps)
    watch.unseen.clear()
    for index, step in enumerate(steps):
        before = watch.losses.usual() if watch.losses.recent else 0.0
        if watch.losses.is_spike(float(losses[:, index].mean())):
            session.progress.spikes.append(step)
            tell_spike(session, step, losses[:, index], before)


def tell_spike(session: Session, step: int, losses: torch.Tensor, before: float) -> None:
    """Warns of a step with the rows of the worker whose loss was highest; after a few, the rest is only counted."""
    session.watch.spikes_told += 1
    if session.group.rank != 0 or session.watch.spikes_told > SPIKES_TOLD:
        return
    rank, shape = int(losses.argmax()), session.shape
    order = epoch_order(session.job.seed, shape.epoch_of(step), shape)
    rows = ", ".join(map(str, micro_batch(order, step, 0, rank, shape)[:4]))
    last = " Further ones are only counted." if session.watch.spikes_told == SPIKES_TOLD else ""
    warn(
        session.worker,
        f"The loss leapt to {float(losses.mean()):.4g} at step {step + 1}, from about {before:.4g} "
        f"(rows {rows}, ... of worker {rank}).{last}",
    )


@contextmanager
def own_work(session: Session) -> Iterator[None]:
    """Times what a worker does without waiting for others: reading a batch and its forward pass.

    Under ZeRO-3 a forward pass gathers weights, so that only the reading tells the workers apart.
    """
    watch = session.watch
    if session.group.world_size == 1 or not watch.sampling:
        yield
        return
    start = device_clock(session.group.device)
    yield
    session.meter.own_s.append(device_clock(session.group.device) - start)
    watch.sampling = session.group.device == "cpu"


def device_clock(device: str) -> float:
    """Seconds, when the device has done what it was given."""
    if device != "cpu":
        import torch

        torch.cuda.synchronize(device)
    return time.perf_counter()


def look_for_stragglers(session: Session) -> None:
    """Warns once of a worker that takes much longer for its own part of a step, in two rounds one after the other.

    Every rank calls it equally often. What takes a core from a worker for a round is no property of that worker.
    """
    import torch

    group = session.group
    if group.world_size == 1:
        return
    own = torch.tensor([session.meter.take_own_s()], dtype=torch.float64, device=group.device)
    times = group.gather(own).flatten().tolist()
    slow, before = find_straggler(times), session.watch.slow_before
    session.watch.slow_before = slow
    if slow is None or slow != before or session.watch.straggler_told:
        return
    session.watch.straggler_told = True
    session.facts["straggler"] = slow
    if group.rank == slow:  # It alone knows where it runs.
        warn(
            session.worker,
            f"Worker {slow} on {socket.gethostname()} takes {times[slow] * 1000:.3g} ms for its part of a step, the "
            f"others about {median_low(times) * 1000:.3g} ms: all wait for it.",
        )


def find_straggler(times_s: Sequence[float]) -> int | None:
    """The slowest worker, if it takes more than 1.5 times as long as the middle one."""
    slowest, middle = max(times_s), median_low(times_s)
    if middle == 0 or slowest <= STRAGGLER_RATIO * middle or slowest - middle < STRAGGLER_DELAY_S:
        return None
    return times_s.index(slowest)
