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


class MedianConfig(Config):
    """Median stopping (Golovin et al. 2017), counted in epochs."""

    grace_epochs: int = Field(2, ge=1)
    """Epochs every trial may run."""
    min_trials: int = Field(3, ge=1)
    """Other trials that must have come as far before one is stopped."""


class PbtConfig(Config):
    """Population based training (Jaderberg et al. 2017); the population are the sweep's trials."""

    interval_epochs: int = Field(2, ge=1)
    """Epochs of a generation."""
    quantile: float = Field(0.25, gt=0, le=0.5)
    """Share of the population that takes over from an equal share of the best."""
    resample: float = Field(0.25, ge=0, le=1)
    """Probability that a value is drawn anew instead of moved a step."""


class AimConfig(Config):
    """A metric of several."""

    name: str
    mode: Literal["min", "max"] | None = None
    """None: min for loss, latency_ms, size_bytes and parameters, else max."""


class ChooseConfig(Config):
    """Which trial of the Pareto set wins."""

    max_drop: float = Field(0.0, ge=0)
    """How much worse than the best in the first aim it may be."""
    prefer: str | None = None
    """Aim that decides among those; None is the first aim."""


class MlflowConfig(Config):
    """Runs of an MLflow experiment that count as observations."""

    experiment: str
    metric: str | None = None
    """The runs' name of the deciding metric; None is the same name."""
    params: dict[str, str] = Field(default_factory=dict)
    """Spec field -> the runs' name of that parameter, where it is another one."""


class TuneConfig(Config):
    """The search for hyperparameters."""

    search: Literal["grid", "random", "bayesian"] = "bayesian"
    sampler: Literal["tpe", "gp"] = "tpe"
    """Model of a Bayesian search: Tree-structured Parzen Estimator, or Gaussian process."""
    trials: int | None = Field(None, ge=1)
    """Configurations tried; None is 10, or the whole grid for `search: grid`."""
    points: tuple[dict[str, Any], ...] = ()
    """Known good configurations, tried first; what a point leaves out is drawn at random."""
    max_epochs: int | None = Field(None, ge=1)
    """Epochs (validations) a trial runs at most, under the schedule of the whole training; None is the whole."""
    scheduler: Literal["asha", "hyperband", "median", "pbt"] | None = None
    """asha, hyperband and median stop bad trials early, pbt lets them take over from good ones; None: all run on."""
    asha: AshaConfig = AshaConfig()
    """Also the innermost bracket of `hyperband`."""
    brackets: int = Field(3, ge=1, le=8)
    """Brackets of `hyperband`, as far as they fit below the longest run."""
    median: MedianConfig = MedianConfig()
    pbt: PbtConfig = PbtConfig()
    metric: str | tuple[str | AimConfig, ...] | None = None
    """Validation metric that decides, or several aims, the first of which decides epochs and stops; None: the task's.
    Further aims may be latency_ms, size_bytes and parameters."""
    choose: ChooseConfig = ChooseConfig()
    """Picks one of the Pareto set where there are several aims."""
    repeats: int | None = Field(None, ge=2)
    """Seeds over which the best `finalists` are trained again after the search; their mean picks the winner."""
    finalists: int = Field(3, ge=2)
    """Configurations that are repeated."""
    folds: int | None = Field(None, ge=2, le=20)
    """Parts of a cross-validation over training and validation split; the mean over them is the metric."""
    retries: int = Field(1, ge=0)
    """Times a trial that failed (error, memory, crash) starts again from its checkpoint; non-finite values never do."""
    report_timeout_s: float | None = Field(None, gt=0)
    """Seconds without a report after which a trial counts as hung and its process is ended; None waits for ever."""
    workers: int = Field(1, ge=1)
    """Processes a trial trains on, sharded as `train.zero` says; more than one are placed together or not at all."""
    concurrency: int | None = Field(None, ge=1)
    """Trials at once; None takes what the cores allow."""
    warm_start: bool = True
    """Whether a Bayesian search is told the earlier trials of this spec's name that lie in its space."""
    mlflow: MlflowConfig | None = None
    """Past MLflow runs that a Bayesian search is told."""
    space: dict[str, SpaceItem] = Field(min_length=1)
    """Dotted spec field -> choice | grid | uniform | log_uniform | int_uniform | int_log_uniform, with `when`."""
    constraints: tuple[str, ...] = ()
    """Expressions over spec fields that every configuration meets, e.g. `train.learning_rate <= 1e-2`."""

    @property
    def aims(self) -> tuple[AimConfig, ...]:
        """`metric` in its long form; empty for the task's own."""
        named = (self.metric,) if isinstance(self.metric, str) else self.metric or ()
        return tuple(AimConfig(name=aim) if isinstance(aim, str) else aim for aim in named)

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
        self._check_combinations()
        return self

    def _check_combinations(self) -> None:
        if self.points and self.search == "grid":
            raise ValueError("points: a grid is gone through in its order; leave points out, or use `search: random`")
        if self.scheduler == "pbt" and self.search == "bayesian":
            raise ValueError("scheduler pbt begins with a population that is there at once; use `search: random`")
        if self.mlflow is not None and self.search != "bayesian":
            raise ValueError("mlflow: only `search: bayesian` learns from past runs; leave mlflow out")
        if self.scheduler == "pbt" and (len(self.aims) > 1 or self.repeats or self.folds):
            raise ValueError("scheduler pbt goes with one metric and without repeats and folds")
        if self.repeats and len(self.aims) > 1:
            raise ValueError("repeats compares one metric over seeds; name one metric, or leave repeats out")


def _check_expression(place: str, text: str) -> None:
    try:
        fields = parse(text).fields
    except ExpressionError as error:
        raise ValueError(f"{place}: {text!r} cannot be read: {error}") from None
    if not fields:
        raise ValueError(f"{place}: {text!r} names no field; a field has a dot, as in model.hidden_size")
