"""The `tune` section of the spec."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from components.config import Config
from components.tune.distributions import Range, SpaceItem, parse_item
from components.tune.expression import ExpressionError, parse


class AshaConfig(Config):
    """Asynchronous successive halving (Li et al. 2018), counted in epochs."""

    grace_epochs: int = Field(2, ge=1)
    """Epochs every trial may run."""
    reduction_factor: int = Field(3, ge=2)
    """One in this many trials goes on at each rung."""


class TuneConfig(Config):
    """The search for hyperparameters."""

    search: Literal["grid", "random", "bayesian"] = "bayesian"
    trials: int | None = Field(None, ge=1)
    """Configurations tried; None is 10, or the whole grid for `search: grid`."""
    max_epochs: int | None = Field(None, ge=1)
    """Epochs a trial runs at most, under the schedule of all `train.epochs`; None is `train.epochs`."""
    scheduler: Literal["asha"] | None = None
    """asha stops bad trials early; None runs every trial to its end."""
    asha: AshaConfig = AshaConfig()
    concurrency: int | None = Field(None, ge=1)
    """Trials at once; None takes what the cores allow."""
    space: dict[str, SpaceItem] = Field(min_length=1)
    """Dotted spec field -> choice | grid | uniform | log_uniform | int_uniform | int_log_uniform, with `when`."""
    constraints: tuple[str, ...] = ()
    """Expressions over spec fields that every configuration meets, e.g. `train.learning_rate <= 1e-2`."""

    @field_validator("space", mode="before")
    @classmethod
    def _one_kind_each(cls, space: Any) -> Any:
        """Picks the distribution by its key, so that an error names that one only."""
        if not isinstance(space, dict):
            return space
        return {name: parse_item(name, item) for name, item in space.items()}

    @model_validator(mode="after")
    def _rules(self) -> TuneConfig:
        for name, item in self.space.items():
            problem = item.problem()
            if problem is not None:
                raise ValueError(f"{name}: {problem}")
            if self.search == "grid" and isinstance(item, Range) and item.spacing is None:
                raise ValueError(f"{name}: a grid search needs a list (`grid: [...]`) or a `step`, not a range")
            if item.when is not None:
                _check_expression(f"{name}: when", item.when)
        for text in self.constraints:
            _check_expression("constraints", text)
        return self


def _check_expression(place: str, text: str) -> None:
    try:
        fields = parse(text).fields
    except ExpressionError as error:
        raise ValueError(f"{place}: {text!r} cannot be read: {error}") from None
    if not fields:
        raise ValueError(f"{place}: {text!r} names no field; a field has a dot, as in model.hidden_size")
