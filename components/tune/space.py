"""The configurations that a sweep may try: entries in their stated order, conditions and constraints.

    space = SearchSpace(config.tune, config.model, config.train)
    space.draw(random.Random(0))         # {"train.learning_rate": 0.003, ...}
    space.grid()                         # every configuration, the last entry changing fastest

A configuration holds the entries whose `when` is true, given the spec and the entries stated before. It counts only if
it meets all constraints and the sections accept it (a hidden size that its heads divide).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from typing import Any

from pydantic import ValidationError

from components.errors import StageError
from components.models.config import ModelConfig
from components.train.config import TrainConfig
from components.tune.config import TuneConfig
from components.tune.distributions import Distribution
from components.tune.expression import Expression, parse
from components.tune.fields import apply_config, merge_config

Pick = Callable[[str, Distribution], Any]
"""Chooses the value of an entry that is searched."""
MAX_DRAWS = 10_000
"""Draws before a space is given up; `check` has seen that some of a thousand meet the constraints."""


class SearchSpace:
    """See the top of this file.

    Args:
        model: The spec's section; fields that no entry names keep its values.
        train: Likewise.
    """

    def __init__(self, tune: TuneConfig, model: ModelConfig, train: TrainConfig) -> None:
        self.entries: Mapping[str, Distribution] = tune.space
        self.model, self.train = model, train
        self.constraints = [parse(text) for text in tune.constraints]
        self.conditions: dict[str, Expression] = {
            name: parse(item.when) for name, item in tune.space.items() if item.when is not None
        }

    def fill(self, pick: Pick) -> dict[str, Any]:
        """A configuration whose values `pick` chooses, one by one in the stated order; it may break constraints."""
        config: dict[str, Any] = {}
        for name, item in self.entries.items():
            if self.is_active(name, config):
                config[name] = pick(name, item)
        return config

    def is_active(self, name: str, config: Mapping[str, Any]) -> bool:
        """Whether an entry is searched, given the values of the entries before it."""
        condition = self.conditions.get(name)
        return condition is None or condition.holds(merge_config(self.model, self.train, config), missing=False)

    def allows(self, config: Mapping[str, Any]) -> bool:
        """Whether a configuration meets every constraint and the sections accept it."""
        if self.constraints:
            fields = merge_config(self.model, self.train, config)
            if not all(constraint.holds(fields, missing=True) for constraint in self.constraints):
                return False
        try:
            apply_config(self.model, self.train, config)
        except ValidationError:
            return False
        return True

    def contains(self, config: Mapping[str, Any]) -> bool:
        """Whether a configuration could have been drawn."""
        before: dict[str, Any] = {}
        for name, item in self.entries.items():
            if self.is_active(name, before):
                if name not in config or not item.contains(config[name]):
                    return False
                before[name] = config[name]
        return set(config) == set(before) and self.allows(config)

    def draw(self, generator: random.Random, given: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """A configuration at random, around the values that are given.

        Raises:
            StageError: If none of 10,000 draws meets the constraints.
        """
        fixed = given or {}
        for _ in range(MAX_DRAWS):
            config = self.fill(lambda name, item: fixed[name] if name in fixed else item.draw(generator))
            if self.allows(config):
                return config
        raise StageError(f"None of {MAX_DRAWS} configurations met tune.constraints; loosen them.", "tune.constraints")

    def grid(self) -> Iterator[dict[str, Any]]:
        """The product of all entries' values in the stated order, the last one changing fastest; what constraints and
        sections refuse is left out."""
        return (config for config in self._product({}, list(self.entries)) if self.allows(config))

    def _product(self, config: dict[str, Any], left: list[str]) -> Iterator[dict[str, Any]]:
        if not left:
            yield config
            return
        name, *rest = left
        if not self.is_active(name, config):
            yield from self._product(config, rest)
            return
        for value in self.entries[name].values:
            yield from self._product({**config, name: value}, rest)

    @cached_property
    def grid_points(self) -> list[dict[str, Any]]:
        """The whole grid, listed once."""
        return list(self.grid())
