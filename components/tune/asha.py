"""Who stops early. Ray Tune's ASHA decides, fed with plain numbers so that a journal can be replayed into it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Literal, Protocol

from components.tune.config import TuneConfig

if TYPE_CHECKING:
    from ray.tune.schedulers import ASHAScheduler


class StopRule(Protocol):
    """Says after each epoch whether a trial goes on."""

    def goes_on(self, trial: int, epoch: int, value: float) -> bool:
        """Told every report once, in order of arrival; `value` is the deciding metric of that epoch."""


class NeverStop:
    """Every trial runs to its end."""

    def goes_on(self, trial: int, epoch: int, value: float) -> bool:
        return True


class Asha:
    """Asynchronous successive halving, one bracket, counted in epochs.

    Source: Li et al. 2018, https://arxiv.org/abs/1810.05934
    """

    def __init__(self, config: TuneConfig, epochs: int, mode: Literal["min", "max"]) -> None:
        self.epochs = epochs
        self.scheduler = _make_scheduler(config, epochs, mode)
        self.trials: dict[int, SimpleNamespace] = {}

    def goes_on(self, trial: int, epoch: int, value: float) -> bool:
        # Of a trial, the scheduler reads nothing but its id; the runner of trials is not asked at all.
        if trial not in self.trials:
            self.trials[trial] = SimpleNamespace(trial_id=str(trial))
            self.scheduler.on_trial_add(None, self.trials[trial])
        decision = self.scheduler.on_trial_result(None, self.trials[trial], {"epoch": epoch, "value": value})
        # At the last epoch the scheduler says stop, but there is nothing left to stop: the trial is finished.
        return epoch >= self.epochs or decision != self.scheduler.STOP


def _make_scheduler(config: TuneConfig, epochs: int, mode: Literal["min", "max"]) -> ASHAScheduler:
    from ray.tune.schedulers import ASHAScheduler

    return ASHAScheduler(
        time_attr="epoch",
        metric="value",
        mode=mode,
        max_t=epochs,
        grace_period=min(config.asha.grace_epochs, epochs),
        reduction_factor=config.asha.reduction_factor,
    )


def make_stop_rule(config: TuneConfig, epochs: int, mode: Literal["min", "max"]) -> StopRule:
    """The stop rule that the spec asks for."""
    return Asha(config, epochs, mode) if config.scheduler == "asha" else NeverStop()
