"""The stage `tune`: searches hyperparameters and writes the `sweep` artifact. See README.md."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from components.artifacts import Artifact, Draft, Ref, open_artifact, write_artifact
from components.config import Config
from components.context import Context
from components.errors import StageError
from components.models.config import ModelConfig
from components.train.config import TrainConfig
from components.tune.aims import MEASURED, resolve_aims
from components.tune.config import TuneConfig
from components.tune.fields import apply_config
from components.tune.folds import make_folds
from components.tune.inherit import inherit_checkpoints
from components.tune.journal import Journal, Record
from components.tune.pbt import Exploit
from components.tune.reporter import Reporter
from components.tune.space import SearchSpace
from components.tune.state import SweepState, Trial
from components.tune.summary import describe_repeats
from components.tune.sweep import Inherit, Sweep, SweepPlan
from components.tune.trial import TrainFunction, TrialSettings

JOURNAL_NAME = "trials.jsonl"
HISTORY_KIND = "history"
UNKNOWN_EPOCHS = 1000


class StageConfig(Config):
    """The fields of the spec that the stage reads."""

    task: str
    seed: int = 0
    model: ModelConfig
    train: TrainConfig
    tune: TuneConfig


def run(
    config: StageConfig,
    inputs: Mapping[str, Ref],
    output: str,
    context: Context,
    train: TrainFunction | None = None,
    inherit: Callable[[TrialSettings, list[Exploit]], None] = inherit_checkpoints,
) -> Artifact:
    """Runs every trial and writes the `sweep` artifact.

    A restart in the same work folder goes on from its journal: trials that ended are not run again, the others
    continue from their checkpoints.

    Args:
        inputs: `dataset`, and `history` where earlier sweeps are gone on from.
        train: What trains a trial; None is `components.train.loop.train`.
        inherit: Moves its checkpoints between trials of a population.

    Raises:
        StageError: If all trials failed, with the first one's reason.
    """
    dataset = open_artifact(inputs["dataset"], kind="dataset")
    plan = make_plan(config)
    folds = config.tune.folds
    alone = context.debug and config.tune.workers > 1
    settings = TrialSettings(
        task=config.task,
        model=config.model,
        train=trial_training(config),
        seed=config.seed,
        dataset=dataset.path,
        # The checkpoints of several workers are another job's than those of one.
        work_folder=context.work_folder / "debug" if alone else context.work_folder,
        measures=tuple(aim.name for aim in plan.aims if aim.name in MEASURED),
        report_timeout_s=config.tune.report_timeout_s,
        workers=1 if alone else config.tune.workers,
        folds=make_folds(dataset.path, context.work_folder / "folds", folds, config.seed) if folds else (),
        epochs=trial_epochs(config),
        metric=plan.facts.metric,
        sign=plan.aims[0].sign,
    )
    begin = read_history(inputs, context)
    journal = open_journal(config, plan, dataset.digest, context, begin)
    sweep = open_sweep(plan, journal, context, partial(inherit, settings))
    run_trials(sweep, settings, train or _default_train(), context)
    winner = sweep.winner()
    if winner is None:
        raise _all_failed(sweep)
    with write_artifact(output, "sweep", inputs, context) as draft:
        write_sweep(draft, sweep, winner, config)
    assert draft.artifact is not None
    return draft.artifact


def read_history(inputs: Mapping[str, Ref], context: Context) -> list[Record]:
    """The records of earlier sweeps that this one begins with; says what they are if it has not begun yet."""
    if "history" not in inputs:
        return []
    history = open_artifact(inputs["history"], kind=HISTORY_KIND)
    if not (context.work_folder / JOURNAL_NAME).exists():
        context.event("note", text=history.manifest.metadata["text"])
    return history.read_json("records.json")


def open_journal(
    config: StageConfig, plan: SweepPlan, dataset_digest: str, context: Context, begin: Sequence[Record] = ()
) -> Journal:
    """The journal of this work folder. Its first record says what is searched, so that it can be read by itself."""
    about = {**describe_sweep(config, plan), "dataset": dataset_digest}
    return Journal(context.work_folder / JOURNAL_NAME, owner_digest(config, dataset_digest), about, begin)


def describe_sweep(config: StageConfig, plan: SweepPlan) -> dict[str, Any]:
    """What a sweep is, as plain values."""
    return {**plan.facts.to_json(), **config.model_dump(mode="json")}


def open_sweep(plan: SweepPlan, journal: Journal, context: Context, inherit: Inherit) -> Sweep:
    """The sweep of this work folder: a new one, or what an earlier start left of it."""
    reporter = Reporter(context, plan.facts, SweepState(plan.facts).total)
    sweep = Sweep(plan, journal, reporter, inherit)
    reporter.resume(sweep.in_order())
    if journal.is_new:
        reporter.tell_earlier(sweep.in_order())
    else:
        sweep.retell()
    return sweep


def make_plan(config: StageConfig) -> SweepPlan:
    """What the sweep's decisions depend on."""
    from components.tasks import get_task

    # A report of a cross-validation is a fold.
    epochs = config.tune.folds or trial_epochs(config)
    space = SearchSpace(config.tune, config.model, config.train)
    return SweepPlan(config.tune, space, config.seed, epochs, resolve_aims(config.tune, get_task(config.task)))


def trial_training(config: StageConfig) -> TrainConfig:
    """How trials train. In a population each validation leaves a checkpoint: another trial may go on from there."""
    if config.tune.scheduler != "pbt":
        return config.train
    return config.train.model_copy(update={"checkpoint_every_epochs": 1, "checkpoint_every_steps": None})


def trial_epochs(config: StageConfig) -> int:
    """Validations of a trial at most: one an epoch, or one every `validate_every_steps`."""
    train, most = config.train, config.tune.max_epochs
    if train.max_steps is None and train.validate_every_steps is None:
        whole = train.epochs
    elif train.max_steps is not None and train.validate_every_steps is not None:
        whole = math.ceil(train.max_steps / train.validate_every_steps)
    else:
        # How many there are depends on the data; a trial ends by itself before this.
        whole = most or UNKNOWN_EPOCHS
    return min(whole, most or whole)


def owner_digest(config: StageConfig, dataset_digest: str) -> str:
    """Names the sweep by its settings and data. Concurrency is left out: it may change between two starts."""
    settings = config.model_copy(update={"tune": config.tune.model_copy(update={"concurrency": None})})
    return hashlib.sha256(f"{settings.model_dump_json()}\n{dataset_digest}".encode()).hexdigest()


def run_trials(sweep: Sweep, settings: TrialSettings, train: TrainFunction, context: Context) -> None:
    """Runs what is left, on Ray or (debug) here."""
    if context.debug:
        from components.tune.runners import run_here

        run_here(sweep, settings, train)
    elif settings.workers > 1:
        from components.tune.group_runner import run_in_groups

        run_in_groups(sweep, settings, train, sweep.plan.tune.concurrency, context.warn)
    else:
        from components.tune.ray_runner import run_on_ray

        run_on_ray(sweep, settings, train, sweep.plan.tune.concurrency, context.warn)


def write_sweep(draft: Draft, sweep: Sweep, winner: Trial, config: StageConfig) -> None:
    """Fills the artifact. Its content holds no times and no retries: a disturbed sweep gives the same bytes."""
    model, train = apply_config(config.model, config.train, winner.config)
    metrics = sweep.metrics(winner)
    repeats = describe_repeats(sweep, winner)
    if repeats:
        # The honest figure: the seed that chose it flatters it.
        metrics[sweep.facts.metric] = repeats["mean"]
    best = {
        "trial": winner.number,
        "config": winner.config,
        "metric": {"name": sweep.facts.metric, "value": metrics[sweep.facts.metric], "split": "validation"},
        "aims": {aim.name: metrics[aim.name] for aim in sweep.facts.aims},
        "pareto": [trial.number for trial in sweep.pareto()],
        "repeats": repeats,
        "model": model.model_dump(mode="json"),
        "train": train.model_dump(mode="json"),
    }
    draft.write_json("trials.json", [describe(trial, sweep) for trial in sweep.in_order()])
    draft.write_json("best.json", best)
    draft.write_json("course.json", [describe_course(trial) for trial in sweep.in_order()], content=False)
    draft.metadata = {**best, "trials": sweep.total}


def describe(trial: Trial, state: SweepState) -> dict[str, Any]:
    """A trial's line in trials.json; `metrics` are those of its best epoch on validation, and what was measured."""
    return {
        "trial": trial.number,
        "config": trial.config,
        "state": trial.state,
        "metrics": state.metrics(trial),
        "epochs": len(trial.reports),
        "chosen_by": trial.chosen_by,
        "reason": trial.reason if trial.state == "failed" else None,
        **({"repeat_of": trial.repeat_of, "seed": trial.seed} if trial.repeat_of is not None else {}),
        **({"takeovers": trial.takeovers} if trial.takeovers else {}),
    }


def describe_course(trial: Trial) -> dict[str, Any]:
    """What happened to a trial on its way: how long it took, how often it failed, and why the last time."""
    seconds = trial.ended_s - trial.started_s
    return {"trial": trial.number, "seconds": seconds, "failures": trial.failures, "reason": trial.reason}


def _all_failed(sweep: Sweep) -> StageError:
    # The next start tries anew: what made them all fail (memory, a library) may be mended by then.
    sweep.journal.set_aside()
    first = sweep.in_order()[0]
    return StageError(f"All {sweep.total} trials failed; the first with: {first.reason}.")


def _default_train() -> TrainFunction:
    from components.train.loop import train

    return train
