"""Axes of the report's drawings: from a value to a place, and the ticks between."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

TICKS = 5
FEW = 5


@dataclass(frozen=True)
class Axis:
    """Maps values to pixels from `start` to `end`.

    Attributes:
        low, high: Values at the two ends; of a list of words, 0 and their number less one.
        log: Whether logarithms are spaced evenly.
        words: Values of an axis that has no numbers, as JSON, in order.
        marks: Where the ticks are; empty for round numbers.
    """

    low: float
    high: float
    start: float
    end: float
    log: bool = False
    words: tuple[str, ...] = ()
    marks: tuple[float, ...] = ()

    def place(self, value: Any) -> float:
        """Pixels of a value."""
        number = self.words.index(word_of(value)) if self.words else float(value)
        low, high, number = (math.log10(n) for n in (self.low, self.high, number)) if self.log else (
            self.low, self.high, number
        )  # fmt: skip
        share = (number - low) / (high - low) if high > low else 0.5
        return round(self.start + share * (self.end - self.start), 1)

    def ticks(self) -> list[tuple[float, str]]:
        """Pixels and text of the marks."""
        if self.words:
            return [(self.place(json.loads(word)), label_of(json.loads(word))) for word in self.words]
        values = self.marks or (self._decades() if self.log else self._round_numbers())
        return [(self.place(value), short(value)) for value in values]

    def _decades(self) -> list[float]:
        first, last = math.ceil(math.log10(self.low) - 1e-9), math.floor(math.log10(self.high) + 1e-9)
        made = [10.0**power for power in range(first, last + 1)]
        return made if len(made) >= 2 else [self.low, self.high]

    def _round_numbers(self) -> list[float]:
        """Multiples of 1, 2 or 5 times a power of ten."""
        span = self.high - self.low
        if span <= 0:
            return [self.low]
        rough = span / TICKS
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.999)
        first = math.ceil(self.low / step - 1e-9)
        last = math.floor(self.high / step + 1e-9)
        return [round(index * step, 12) for index in range(first, last + 1)]


def axis_for(
    values: Sequence[Any], start: float, end: float, log: bool = False, pad: float = 0.0, few_are_marked: bool = False
) -> Axis:
    """The axis that holds all of some values, numbers or words.

    Args:
        pad: Room at both ends as a share of the span.
        few_are_marked: Whether up to five different numbers are the ticks themselves.
    """
    if not values or not all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        words = tuple(dict.fromkeys(word_of(value) for value in values))
        words = tuple(sorted(words)) if len(words) > 1 else words
        room = 0.4 if pad else 0.0
        return Axis(-room, max(1, len(words) - 1) + room, start, end, words=words)
    low, high = min(values), max(values)
    few = tuple(sorted(set(values))) if len(set(values)) <= FEW and few_are_marked else ()
    if log and low > 0:
        return Axis(low, high, start, end, log=True)
    room = pad * (high - low) or (abs(high) * 0.05 or 1.0) * (high == low)
    return Axis(low - room, high + room, start, end, marks=few)


def word_of(value: Any) -> str:
    """A value that is no number, as text that can be compared."""
    return json.dumps(value, sort_keys=True)


def label_of(value: Any) -> str:
    """A value as people read it; of a section its architecture or name, if it has one."""
    if isinstance(value, dict):
        return str(value.get("architecture") or value.get("name") or json.dumps(value))
    if isinstance(value, list):
        return "-".join(map(str, value))
    return short(value) if isinstance(value, float) else str(value)


def short(value: float) -> str:
    """At most four digits."""
    text = f"{value:.4g}"
    return text.replace("e-0", "e-").replace("e+0", "e")
