"""Runs the trials of a sweep on Ray Tune: its actors, their reuse and their resources; no decision of its own.

Tune's Searcher asks the sweep for trials and its scheduler passes reports on. Tune's snapshots (pickles, written every
ten seconds) are not used: a restart builds a new Tune run from the sweep's journal.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.errors import StageError
from components.ray_connection import connect_ray
from components.train.launch import cluster_machines
from components.tune.runners import (
    LOST_REASON,
    Slots,
    deliver,
    machine_was_lost,
    plan_slots,
    remove_checkpoints,
)
from components.tune.sweep import Sweep
from components.tune.trial import Message, TrainFunction, TrialSettings, TrialStopped, run_trial
from components.tune.watchdog import Watchdog, take_hung_reason

if TYPE_CHECKING:
    from ray.tune import Tuner
    from ray.tune.schedulers import TrialScheduler
    from ray.tune.search import Searcher

PLACEMENT_TIMEOUT_S = 30
TRIALS_PER_RUN = 1000
"""Tune keeps some 30 KB of each trial it ever ran; a new run of Tune after so many (seconds) gives them back."""
THREAD_END_TIMEOUT_S = 60
"""How long a stopped trial may take to unwind before its process is given up."""
TUNE_ENVIRONMENT = {
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    # Ctrl-C ends the stage like any other program, instead of letting Tune finish its books first.
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000000",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_RESULT_BUFFER_LENGTH": "1",
    # We say ourselves when a trial cannot be placed.
    "TUNE_WARN_INSUFFICENT_RESOURCE_THRESHOLD_S": "1000000000",
}


def run_on_ray(
    sweep: Sweep,
    settings: TrialSettings,
    train: TrainFunction,
    concurrency: int | None,
    warn: Callable[[str], None] = lambda text: None,
) -> None:
    """Runs what is left of the sweep.

    Args:
        concurrency: Trials at once; None takes what the cluster's cores allow.
        warn: Told when no trial could be placed for 30 s.

    Raises:
        StageError: If the sweep itself cannot go on (a full disk), or Ray ends without getting any further.
    """
    connect_ray()
    slots = plan_slots(cluster_machines(), concurrency, sweep.total)
    remove_checkpoints(sweep, settings)
    while sweep.ended < sweep.total:
        records = sweep.journal.count
        _run_tune(sweep, settings, train, slots, warn)
        if sweep.journal.count == records:
            left = sweep.total - sweep.ended
            raise StageError(f"Ray Tune ended with {left} trials left and said no reason; look into the stage's log.")
        sweep.requeue()


def _run_tune(
    sweep: Sweep, settings: TrialSettings, train: TrainFunction, slots: Slots, warn: Callable[[str], None]
) -> None:
    folder = settings.work_folder / "tune"
    scheduler = make_scheduler(sweep, settings, warn)
    with _tune_environment(slots):
        tuner = _make_tuner(sweep, settings, train, slots, scheduler)
        try:
            tuner.fit()
        except Exception as error:  # noqa: BLE001 - raised again, as itself
            # Tune wraps what a scheduler raises into the text of a TuneError.
            raise scheduler.error or error from None
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _make_tuner(
    sweep: Sweep,
    settings: TrialSettings,
    train: TrainFunction,
    slots: Slots,
    scheduler: TrialScheduler,
) -> Tuner:
    from ray import tune

    resources = {"CPU": slots.cpus} | ({"GPU": slots.gpus} if slots.gpus else {})
    return tune.Tuner(
        tune.with_resources(make_trainable(settings, train, slots.cpus), resources),
        tune_config=tune.TuneConfig(
            search_alg=make_searcher(sweep, slots.count),
            scheduler=scheduler,
            num_samples=-1,  # the searcher says when it is done
            reuse_actors=True,
            trial_name_creator=name_trial,
            trial_dirname_creator=name_trial,
        ),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=str(settings.work_folder),
            verbose=0,
            # Retries are the sweep's: it records them.
            failure_config=tune.FailureConfig(max_failures=0),
        ),
    )


def name_trial(trial: Any) -> str:
    """Short and plain: Tune would spell out the whole configuration."""
    return f"trial_{trial.config['number']:03d}"


@contextmanager
def _tune_environment(slots: Slots) -> Iterator[None]:
    """Tune reads these from this process; they are put back for whatever runs here afterwards.

    What Tune would log as errors (trials that did not complete) the sweep records with their reasons.
    """
    wanted = {**TUNE_ENVIRONMENT, "TUNE_MAX_PENDING_TRIALS_PG": str(slots.count)}
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    level = logging.getLogger("ray.tune").level
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logging.getLogger("ray.tune").setLevel(level)
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def make_trainable(settings: TrialSettings, train: TrainFunction, threads: int) -> Callable[[dict[str, Any]], None]:
    """The function that Tune runs in its actors, trial after trial."""

    def penstock_trial(config: dict[str, Any]) -> None:
        from ray import tune

        os.environ["TUNE_FUNCTION_THREAD_TIMEOUT_S"] = str(THREAD_END_TIMEOUT_S)
        # The training loop reads it; Ray sets 1 for an actor in a placement group, whatever it was given.
        os.environ["OMP_NUM_THREADS"] = str(threads)

        watchdog = Watchdog(settings.report_timeout_s, settings.folder(config["number"]))

        def send(message: Message) -> bool:
            watchdog.alive()
            # As one string, because Tune flattens what it is given. On a stop Tune exits from within report(), and its
            # thread must end without another report, else its process cannot be used again.
            try:
                tune.report({"message": json.dumps(message)})
            except SystemExit:
                raise TrialStopped from None
            return True

        with watchdog:
            run_trial(settings, config["number"], json.loads(config["values"]), train, send, config["seed"])

    return penstock_trial


def make_searcher(sweep: Sweep, count: int) -> Searcher:
    """Tune's view of the sweep as a source of trials, at most `count` at once."""
    from ray.tune.search import Searcher

    class JournalSearcher(Searcher):
        handed_out = 0

        def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
            if sweep.ended >= sweep.total or self.handed_out >= TRIALS_PER_RUN:
                return Searcher.FINISHED
            trial = sweep.next_trial() if sweep.running < count else None
            if trial is None:
                return None
            self.handed_out += 1
            return {"number": trial.number, "values": json.dumps(trial.config), "seed": trial.seed}

        def on_trial_complete(self, trial_id: str, result: dict | None = None, error: bool = False) -> None:
            """The sweep has heard of it from the scheduler."""

        def save(self, checkpoint_path: str) -> None:
            """The journal holds everything."""

    return JournalSearcher()


def make_scheduler(sweep: Sweep, settings: TrialSettings, warn: Callable[[str], None]) -> Any:
    """Tune's scheduler that passes messages and deaths on to the sweep and answers with its decisions.

    It also says once when no trial could be placed in time. All that needs no callback: given one, Tune imports every
    tracking library it knows.
    """
    from ray.tune.schedulers import FIFOScheduler

    class JournalScheduler(FIFOScheduler):
        error: Exception | None = None
        waiting_since: float | None = time.monotonic()

        def on_trial_result(self, controller: Any, trial: Any, result: Mapping[str, Any]) -> str:
            try:
                goes_on = deliver(sweep, trial.config["number"], json.loads(result["message"]))
            except Exception as error:
                self.error = error
                raise
            return self.CONTINUE if goes_on else self.STOP

        def on_trial_complete(self, controller: Any, trial: Any, result: Mapping[str, Any]) -> None:
            remove_checkpoints(sweep, settings, trial.config["number"])

        def on_trial_error(self, controller: Any, trial: Any) -> None:
            path, number = Path(trial.error_file), trial.config["number"]
            text = path.read_text() if path.exists() else ""
            reason = take_hung_reason(settings.folder(number))
            try:
                sweep.fail(number, reason or name_death(text), lost=reason is None and machine_was_lost(text))
            except Exception as error:
                self.error = error
                raise

        def choose_trial_to_run(self, controller: Any) -> Any:
            if self.waiting_since is not None:
                self._watch(controller)
            return super().choose_trial_to_run(controller)

        def _watch(self, controller: Any) -> None:
            assert self.waiting_since is not None
            if any(trial.status == "RUNNING" for trial in controller.get_trials()):
                self.waiting_since = None
            elif time.monotonic() - self.waiting_since > PLACEMENT_TIMEOUT_S:
                self.waiting_since = None
                warn(f"No trial could be placed for {PLACEMENT_TIMEOUT_S} s: the cluster's CPUs or GPUs are in use.")

    return JournalScheduler()


def name_death(text: str) -> str:
    """Why a trial's process was given up, without addresses and pids: equal sweeps have equal records."""
    if machine_was_lost(text):
        return LOST_REASON
    if "OutOfMemory" in text or "out of memory" in text:
        return "its process ran out of memory"
    if "ActorDied" in text or "actor died" in text or not text.strip():
        return "its process died (killed, or crashed in native code)"
    return f"its process failed: {text.strip().splitlines()[-1].strip()[:300]}"
