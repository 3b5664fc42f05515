"""The `tune` section of the spec."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from components.config import Config


class AshaConfig(Config):
    """Asynchronous successive halving (Li et al. 2018), counted in epochs."""

    grace_epochs: int = Field(2, ge=1)
    """Epochs every trial may run."""
    reduction_factor: int = Field(3, ge=2)
    """One in this many trials goes on at each rung."""


class Choice(Config):
    """One of some values; a value may be a whole section."""

    choice: tuple[Any, ...] = Field(min_length=1)


class Grid(Config):
    """Every one of these values (`search: grid`)."""

    grid: tuple[Any, ...] = Field(min_length=1)


class Uniform(Config):
    """A number between low and high."""

    uniform: tuple[float, float]


class LogUniform(Config):
    """A number whose logarithm is uniform."""

    log_uniform: tuple[float, float]


class IntUniform(Config):
    """A whole number from low to high, both included."""

    int_uniform: tuple[int, int]


SpaceItem = Choice | Grid | Uniform | LogUniform | IntUniform


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
    """Dotted spec field -> choice | grid | uniform | log_uniform | int_uniform."""

    @field_validator("space", mode="before")
    @classmethod
    def _one_kind_each(cls, space: Any) -> Any:
        """Picks the distribution by its key, so that an error names that one only."""
        if not isinstance(space, dict):
            return space
        return {name: _parse_item(name, item) for name, item in space.items()}

    @model_validator(mode="after")
    def _rules(self) -> TuneConfig:
        for name, item in self.space.items():
            _check_range(name, item)
            if self.search == "grid" and not isinstance(item, Grid | Choice):
                raise ValueError(f"{name}: a grid search needs a list (`grid: [...]`), not a range")
        grid_size = 1
        for item in self.space.values():
            grid_size *= len(item.grid if isinstance(item, Grid) else item.choice if isinstance(item, Choice) else ())
        if self.search == "grid" and self.trials is not None and self.trials > grid_size:
            raise ValueError(
                f"trials is {self.trials}, but the grid has {grid_size} points; lower trials or leave it out"
            )
        return self


_KINDS: dict[str, type[Config]] = {
    "choice": Choice,
    "grid": Grid,
    "uniform": Uniform,
    "log_uniform": LogUniform,
    "int_uniform": IntUniform,
}


def _parse_item(name: str, item: Any) -> Any:
    if isinstance(item, Config):
        return item
    if not isinstance(item, dict) or len(item) != 1 or next(iter(item)) not in _KINDS:
        raise ValueError(
            f"{name}: {item!r} is no distribution; write one of {', '.join(_KINDS)}, as in {{choice: [a, b]}}"
        )
    return _KINDS[next(iter(item))].model_validate(item)


def _check_range(name: str, item: SpaceItem) -> None:
    if isinstance(item, Choice | Grid):
        return
    low, high = next(iter(item.model_dump().values()))
    if not low < high:
        raise ValueError(f"{name}: the range [{low}, {high}] is empty; the first number must be the smaller")
    if isinstance(item, LogUniform) and low <= 0:
        raise ValueError(f"{name}: log_uniform needs numbers above 0, not {low}")
