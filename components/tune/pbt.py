"""Population based training, one generation at a time.

All members train `interval_epochs`, then wait. When the last one has arrived, each of the worst quarter takes over
checkpoint and configuration of one of the best quarter, with changed values. A decision depends only on (seed, epoch,
what the generation reported), so it is the same at any concurrency and after any kill. Waiting costs no process: a
member that waits is a checkpoint.

Source: Jaderberg et al. 2017, https://arxiv.org/abs/1711.09846
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from components.tune.config import PbtConfig
from components.tune.distributions import Distribution, IntLogUniform, IntUniform, Range
from components.tune.space import SearchSpace

FACTORS = (0.8, 1.2)
KEPT = ("train.global_batch_size", "train.gradient_accumulation_steps")
"""Fields of `train` that a trained network cannot change in between, because they decide what a step is; as all of
`model`."""
MAX_TRIES = 100


@dataclass(frozen=True)
class Member:
    """A trial that waits; `value` is its newest deciding metric, higher is better."""

    number: int
    config: Mapping[str, Any]
    value: float


@dataclass(frozen=True)
class Exploit:
    """Trial `trial` goes on with `config` from the checkpoint of trial `source`, whose configuration is `parent`."""

    trial: int
    source: int
    parent: Mapping[str, Any]
    config: Mapping[str, Any]


def plan_generation(
    config: PbtConfig, space: SearchSpace, seed: int, epoch: int, members: Sequence[Member]
) -> list[Exploit]:
    """Which of the waiting members take over from which; in order of their number."""
    ranked = sorted(members, key=lambda member: (-member.value, member.number))
    count = min(max(1, round(len(ranked) * config.quantile)), len(ranked) // 2)
    best, worst = ranked[:count], ranked[len(ranked) - count :]
    exploits = []
    for member in sorted(worst, key=lambda member: member.number):
        generator = random.Random(f"penstock pbt {seed} trial {member.number} epoch {epoch}")
        source = best[generator.randrange(len(best))] if best else member
        if source.value > member.value:
            child = explore(config, space, source.config, generator)
            exploits.append(Exploit(member.number, source.number, source.config, child))
    return exploits


def explore(
    config: PbtConfig, space: SearchSpace, parent: Mapping[str, Any], generator: random.Random
) -> dict[str, Any]:
    """The parent's configuration with its training values changed; the parent's own if no change is allowed."""
    for _ in range(MAX_TRIES):
        child = {
            name: _change(space.entries[name], value, config.resample, generator) if is_changed(name) else value
            for name, value in parent.items()
        }
        if space.contains(child):
            return child
    return dict(parent)


def is_changed(name: str) -> bool:
    """Whether a value may change while a network trains."""
    return name.startswith("train.") and name not in KEPT


def _change(item: Distribution, value: Any, resample: float, generator: random.Random) -> Any:
    """Another draw, or a step to the side: a factor for a range, a neighbour in a list."""
    if generator.random() < resample:
        return item.draw(generator)
    if isinstance(item, Range) and item.spacing in (None, 1):
        low, high = item.ends
        changed = min(max(value * generator.choice(FACTORS), low), high)
        return round(changed) if isinstance(item, IntUniform | IntLogUniform) else changed
    values = list(item.values)
    place = values.index(value) if value in values else 0
    return values[min(max(place + generator.choice((-1, 1)), 0), len(values) - 1)]
