"""What every runner of trials shares, and the one that runs them in this process, one after the other (`--debug`).

Runners only carry messages: every decision is the sweep's, and it is in the journal before a runner learns of it.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from components.errors import StageError
from components.train.device import Hardware, even_share, places
from components.tune.sweep import Sweep
from components.tune.trial import Message, TrainFunction, TrialSettings, TrialStopped, run_trial

LOST = re.compile(r"actor \w+ is unavailable|node has died|node was terminated")
"""What Ray says of an actor whose node is gone, or does not answer any more."""
LOST_REASON = "its machine was lost"


def machine_was_lost(text: str) -> bool:
    """Whether it was the machine, not the process on it, that Ray lost."""
    return LOST.search(text) is not None


@dataclass(frozen=True)
class Slots:
    """How many trials run side by side, and what each is given."""

    count: int
    cpus: int
    gpus: int


def plan_slots(machines: Sequence[Hardware], concurrency: int | None, trials: int) -> Slots:
    """Divides a cluster's machines among trials: a GPU each where there are GPUs, else one core each.

    Small networks gain less from a second thread than from a second trial; see README.md for the measurement. Cores
    that would be idle go to the trials that run.
    """
    room, gpus = places(machines), sum(machine.gpus for machine in machines)
    if room < 1:
        cpus = sum(machine.cores for machine in machines)
        raise StageError(
            f"The cluster has {cpus} CPUs and {gpus} GPUs, but a trial needs at least one CPU; add a node."
        )
    count = max(1, min(room, trials, concurrency or room))
    return Slots(count=count, cpus=even_share(machines, count), gpus=1 if gpus else 0)


def deliver(sweep: Sweep, number: int, message: Message) -> bool:
    """Hands a trial's message to the sweep and says whether the trial goes on."""
    if message["state"] == "fatal":
        raise StageError(f"The search had to stop: {message['reason']}")
    if message["state"] == "measured":
        sweep.measure(number, message["metrics"])
        return True
    if message["state"] == "report":
        return sweep.report(number, message["epoch"], message["metrics"], message["pace"])
    if message["state"] == "finished":
        sweep.finish(number)
    else:
        sweep.fail(number, message["reason"])
    return False


def remove_checkpoints(sweep: Sweep, settings: TrialSettings, number: int | None = None) -> None:
    """Frees the disk of trials that ended, of all or of one; what a failed one left to read (error.txt) stays."""
    for trial in sweep.in_order() if number is None else [sweep.trials[number]]:
        folder = settings.folder(trial.number)
        if trial.state in ("finished", "stopped") and folder.exists():
            shutil.rmtree(folder, ignore_errors=True)


def run_here(sweep: Sweep, settings: TrialSettings, train: TrainFunction) -> None:
    """Runs the trials one after the other in this process."""
    while (trial := sweep.next_trial()) is not None:
        carrier = _Carrier(sweep, trial.number)
        with suppress(TrialStopped):
            run_trial(settings, trial.number, trial.config, train, carrier.send, trial.seed)
        if carrier.error is not None:
            raise carrier.error
        remove_checkpoints(sweep, settings, trial.number)


class _Carrier:
    """Keeps an error of the sweep (a full disk under its journal) apart from those of the trial it passes through."""

    def __init__(self, sweep: Sweep, number: int) -> None:
        self.sweep, self.number = sweep, number
        self.error: Exception | None = None

    def send(self, message: Message) -> bool:
        try:
            return deliver(self.sweep, self.number, message)
        except Exception as error:  # noqa: BLE001 - raised again by the runner
            self.error = error
            return False
