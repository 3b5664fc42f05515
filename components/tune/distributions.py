"""What a field of a sweep may be: a list of values, or a range of numbers.

    train.learning_rate: {log_uniform: [1e-4, 1e-2]}
    train.regularize.label_smoothing: {uniform: [0, 0.3], step: 0.1}
    model.hidden_size: {int_uniform: [64, 256], step: 64, when: model.architecture == bert}

Ends are included. `when` makes an entry conditional: it is searched only where the expression holds.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from pydantic import Field

from components.config import Config


class Distribution(Config):
    """What all entries of a space share."""

    when: str | None = None
    """Searched only where this holds, e.g. `model.architecture == bert`; else the field keeps the spec's value."""

    @property
    def kind(self) -> str:
        """The key in the spec."""
        return next(name for name, known in KINDS.items() if type(self) is known)

    @property
    def values(self) -> tuple[Any, ...]:
        """All values in order; empty if they cannot be counted."""
        raise NotImplementedError

    def draw(self, generator: random.Random) -> Any:
        """One value at random."""
        values = self.values
        return values[generator.randrange(len(values))]

    def contains(self, value: Any) -> bool:
        """Whether a value could have been drawn."""
        return plain(value) in [plain(known) for known in self.values]

    def problem(self) -> str | None:
        """Why nothing could be drawn, or None."""
        return None


class Choice(Distribution):
    """One of some values; a value may be a whole section."""

    choice: tuple[Any, ...] = Field(min_length=1)

    @property
    def values(self) -> tuple[Any, ...]:
        return self.choice


class Grid(Distribution):
    """Every one of these values (`search: grid`)."""

    grid: tuple[Any, ...] = Field(min_length=1)

    @property
    def values(self) -> tuple[Any, ...]:
        return self.grid


class Range(Distribution):
    """Numbers from low to high. Subclasses hold the two ends in the field that names them."""

    @property
    def ends(self) -> tuple[float, float]:
        return getattr(self, self.kind)

    @property
    def spacing(self) -> float | None:
        """Distance between two values; None if there is none."""
        return getattr(self, "step", None)

    @property
    def log(self) -> bool:
        """Whether logarithms are uniform."""
        return isinstance(self, LogUniform | IntLogUniform)

    @property
    def values(self) -> tuple[Any, ...]:
        return tuple(self._at(index) for index in range(self._count)) if self.spacing else ()

    @property
    def _count(self) -> int:
        """How many values a spacing leaves."""
        low, high = self.ends
        return int((Decimal(str(high)) - Decimal(str(low))) / Decimal(str(self.spacing))) + 1

    def _at(self, index: int) -> float | int:
        # In decimal, so that 0.1 + 2 x 0.1 is 0.3.
        value = Decimal(str(self.ends[0])) + index * Decimal(str(self.spacing))
        return int(value) if isinstance(self, IntUniform) else float(value)

    def draw(self, generator: random.Random) -> Any:
        low, high = self.ends
        if self.spacing is not None:
            return self._at(generator.randrange(self._count))
        if self.log:
            drawn = math.exp(generator.uniform(math.log(low), math.log(high)))
        else:
            drawn = generator.uniform(low, high)
        return min(max(drawn, low), high)

    def contains(self, value: Any) -> bool:
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        low, high = self.ends
        if not low <= value <= high:
            return False
        return self.spacing is None or math.isclose(value, self._at(round((value - low) / self.spacing)), abs_tol=1e-12)

    def problem(self) -> str | None:
        low, high = self.ends
        if not low < high:
            return f"the range [{low}, {high}] is empty; the first number must be the smaller"
        if self.log and low <= 0:
            return f"{self.kind} needs numbers above 0, not {low}"
        if self.spacing is not None and self.spacing > high - low:
            return f"step {self.spacing} is larger than the range [{low}, {high}]"
        return None


class Uniform(Range):
    """A number between low and high; with `step`, low and every `step` above it."""

    uniform: tuple[float, float]
    step: float | None = Field(None, gt=0)


class LogUniform(Range):
    """A number whose logarithm is uniform."""

    log_uniform: tuple[float, float]


class IntUniform(Range):
    """A whole number from low to high, every `step`."""

    int_uniform: tuple[int, int]
    step: int = Field(1, ge=1)


class IntLogUniform(Range):
    """A whole number whose logarithm is uniform."""

    int_log_uniform: tuple[int, int]

    def draw(self, generator: random.Random) -> int:
        low, high = self.ends
        # Half a step on either side, so that both ends are drawn as often as their share of the logarithms says.
        drawn = math.exp(generator.uniform(math.log(low - 0.5), math.log(high + 0.5)))
        return int(min(max(round(drawn), low), high))

    def contains(self, value: Any) -> bool:
        return super().contains(value) and float(value).is_integer()


SpaceItem = Choice | Grid | Uniform | LogUniform | IntUniform | IntLogUniform
KINDS: dict[str, type[Distribution]] = {
    "choice": Choice,
    "grid": Grid,
    "uniform": Uniform,
    "log_uniform": LogUniform,
    "int_uniform": IntUniform,
    "int_log_uniform": IntLogUniform,
}


def parse_item(name: str, item: Any) -> Any:
    """The entry that a mapping of the spec names, chosen by its key, so that an error speaks of that one only.

    Raises:
        ValueError: If it is no distribution, or pydantic's error if its values are not of its kind.
    """
    if isinstance(item, Distribution):
        return item
    if isinstance(item, Mapping):
        # A dumped item of another place spells out its defaults.
        kinds = [key for key in item if key in KINDS]
        if len(kinds) == 1 and set(item) <= {*KINDS[kinds[0]].model_fields}:
            return KINDS[kinds[0]].model_validate(item)
    raise ValueError(
        f"{name}: {item!r} is no distribution; write one of {', '.join(KINDS)}, as in {{choice: [a, b]}}, with `step` "
        "for uniform and int_uniform and `when` for all"
    )


def plain(value: Any) -> Any:
    """Lists for tuples, as a value looks after a trip through JSON."""
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value
