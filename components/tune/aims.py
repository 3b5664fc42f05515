"""What a sweep aims at: one metric, or several of which the Pareto set is kept and a rule picks one.

The first aim is a validation metric of the task: it decides which epoch is a trial's best and who stops early. The
others may also be what is measured of the trial's network: `parameters`, `size_bytes`, `latency_ms`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from components.errors import SpecError
from components.tasks.base import Task
from components.tune.config import TuneConfig

Mode = Literal["min", "max"]
MEASURED = ("parameters", "size_bytes", "latency_ms")
"""Measured of each trial's network; `latency_ms` is the median of a forward pass of one sample on one thread."""
SMALLER_IS_BETTER = (*MEASURED, "loss", "train_loss", "perplexity")


@dataclass(frozen=True)
class Aim:
    """A metric and which way is better."""

    name: str
    mode: Mode

    @property
    def sign(self) -> int:
        """1 if more is better, else -1."""
        return 1 if self.mode == "max" else -1


def resolve_aims(tune: TuneConfig, task: Task) -> tuple[Aim, ...]:
    """The aims of the spec; without `tune.metric` the task's deciding metric."""
    if not tune.aims:
        return (Aim(task.deciding_metric, task.mode),)
    return tuple(Aim(aim.name, aim.mode or default_mode(aim.name, task)) for aim in tune.aims)


def default_mode(name: str, task: Task) -> Mode:
    if name == task.deciding_metric:
        return task.mode
    return "min" if name in SMALLER_IS_BETTER else "max"


def check_aims(tune: TuneConfig, task: Task) -> list[SpecError]:
    """Metrics that no trial would report, and a rule that names none of them."""
    reported = {task.deciding_metric, *task.reported, "loss", "train_loss"}
    for place, aim in enumerate(tune.aims):
        allowed = [*sorted(reported), *(MEASURED if place else ())]
        if aim.name not in allowed:
            measured = place == 0 and aim.name in MEASURED
            why = "is not known after each epoch, as the first aim must be" if measured else "is reported by no trial"
            text = f"tune.metric {aim.name} {why}; take one of {', '.join(allowed)}."
            return [SpecError(text, "tune.metric")]
    names = [aim.name for aim in tune.aims]
    if len(names) != len(set(names)):
        return [SpecError("tune.metric names a metric twice; name each once.", "tune.metric")]
    if tune.choose.prefer is not None and tune.choose.prefer not in names:
        known = ", ".join(names) or "none"
        text = f"tune.choose.prefer is {tune.choose.prefer}, which is no aim of tune.metric ({known})."
        return [SpecError(text, "tune.choose.prefer")]
    return []


def pareto_set(points: Sequence[Mapping[str, Any]], aims: Sequence[Aim]) -> list[int]:
    """Places of the points that no other one beats in one aim without losing in another."""
    values = [tuple(aim.sign * point[aim.name] for aim in aims) for point in points]
    front: list[int] = []
    # What beats a point is the larger one of the two in this order: it is in the front before the point's turn.
    for place in sorted(range(len(values)), key=lambda place: values[place], reverse=True):
        mine = values[place]
        if not any(
            values[other] != mine and all(a >= b for a, b in zip(values[other], mine, strict=True)) for other in front
        ):
            front.append(place)
    return sorted(front)


def pick(points: Sequence[Mapping[str, Any]], aims: Sequence[Aim], max_drop: float, prefer: str | None) -> int:
    """Place of the point that the spec's rule picks.

    Of the Pareto set, those stay that are at most `max_drop` worse than its best in the first aim; of these the one
    best in `prefer` wins (without it: in the first aim), then in the other aims in order, then the earlier one.
    """
    front = pareto_set(points, aims)
    first = aims[0]
    best = max(first.sign * points[place][first.name] for place in front)
    # A hair of slack: 0.95 - 0.01 is not quite 0.94.
    near = [place for place in front if first.sign * points[place][first.name] >= best - max_drop - 1e-12]
    order = sorted(aims, key=lambda aim: aim.name != (prefer or first.name))
    return max(near, key=lambda place: ([aim.sign * points[place][aim.name] for aim in order], -place))
