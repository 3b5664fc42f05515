"""Who stops early. Rules are fed with plain numbers in order of arrival, so that a journal can be replayed."""

from __future__ import annotations

import statistics
from types import SimpleNamespace
from typing import TYPE_CHECKING, Literal, Protocol

from components.tune.config import TuneConfig

if TYPE_CHECKING:
    from ray.tune.schedulers import ASHAScheduler

Mode = Literal["min", "max"]


class StopRule(Protocol):
    """Says after each epoch whether a trial goes on."""

    def goes_on(self, trial: int, epoch: int, value: float) -> bool:
        """Told every report once, in order of arrival; `value` is the deciding metric of that epoch."""


class NeverStop:
    """Every trial runs to its end."""

    def goes_on(self, trial: int, epoch: int, value: float) -> bool:
        return True


class Asha:
    """Asynchronous successive halving; with several brackets, asynchronous HyperBand. Counted in epochs.

    Ray Tune's scheduler decides within a bracket. Its own brackets are drawn at random; ours are dealt by trial number.

    Args:
        brackets: Each next one spares its trials for `reduction_factor` times as many epochs.

    Source: Li et al. 2018, https://arxiv.org/abs/1810.05934
    """

    def __init__(self, config: TuneConfig, epochs: int, mode: Mode, brackets: int = 1) -> None:
        self.epochs, factor = epochs, config.asha.reduction_factor
        graces = [config.asha.grace_epochs * factor**bracket for bracket in range(brackets)]
        graces = [grace for grace in graces if grace < epochs] or [min(config.asha.grace_epochs, epochs)]
        self.schedulers = [_make_scheduler(grace, factor, epochs, mode) for grace in graces]
        # HyperBand's n_s: the bracket that stops hardest has the most trials.
        last = len(graces) - 1
        self.weights = [factor ** (last - bracket) / (last - bracket + 1) for bracket in range(len(graces))]
        self.trials: dict[int, SimpleNamespace] = {}

    def goes_on(self, trial: int, epoch: int, value: float) -> bool:
        # Of a trial, the scheduler reads nothing but its id; the runner of trials is not asked at all.
        scheduler = self.schedulers[deal(trial, self.weights)]
        if trial not in self.trials:
            self.trials[trial] = SimpleNamespace(trial_id=str(trial))
            scheduler.on_trial_add(None, self.trials[trial])
        decision = scheduler.on_trial_result(None, self.trials[trial], {"epoch": epoch, "value": value})
        # At the last epoch the scheduler says stop, but there is nothing left to stop: the trial is finished.
        return epoch >= self.epochs or decision != scheduler.STOP


def deal(trial: int, weights: list[float]) -> int:
    """The place that trial number `trial` gets when trials are dealt in proportion to `weights`, the neediest first."""
    dealt = [0] * len(weights)
    place = 0
    for _ in range(trial + 1):
        place = min(range(len(weights)), key=lambda index: (dealt[index] / weights[index], index))
        dealt[place] += 1
    return place


def _make_scheduler(grace: int, factor: int, epochs: int, mode: Mode) -> ASHAScheduler:
    from ray.tune.schedulers import ASHAScheduler

    return ASHAScheduler(
        time_attr="epoch", metric="value", mode=mode, max_t=epochs, grace_period=grace, reduction_factor=factor
    )


class MedianStop:
    """Stops a trial whose best value is worse than the median of the others' averages up to the same epoch.

    Source: Golovin et al. 2017 (Google Vizier), section 3.2.1, https://dl.acm.org/doi/10.1145/3097983.3098043
    """

    def __init__(self, config: TuneConfig, mode: Mode) -> None:
        self.config, self.sign = config.median, 1 if mode == "max" else -1
        self.values: dict[int, dict[int, float]] = {}

    def goes_on(self, trial: int, epoch: int, value: float) -> bool:
        own = self.values.setdefault(trial, {})
        own[epoch] = self.sign * value
        others = [
            statistics.fmean(known for reached, known in values.items() if reached <= epoch)
            for number, values in self.values.items()
            if number != trial and max(values) >= epoch
        ]
        if epoch < self.config.grace_epochs or len(others) < self.config.min_trials:
            return True
        return max(own.values()) >= statistics.median(others)


def make_stop_rule(config: TuneConfig, epochs: int, mode: Mode) -> StopRule:
    """The stop rule that the spec asks for."""
    if config.scheduler == "asha":
        return Asha(config, epochs, mode)
    if config.scheduler == "hyperband":
        return Asha(config, epochs, mode, config.brackets)
    return MedianStop(config, mode) if config.scheduler == "median" else NeverStop()
