"""The stage `tune`: searches hyperparameters and writes the `sweep` artifact. See README.md."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from components.artifacts import Artifact, Draft, Ref, open_artifact, write_artifact
from components.config import Config
from components.context import Context
from components.errors import StageError
from components.models.config import ModelConfig
from components.train.config import TrainConfig
from components.tune.config import TuneConfig
from components.tune.fields import apply_config
from components.tune.journal import Journal
from components.tune.reporter import Reporter
from components.tune.search import count_trials
from components.tune.space import SearchSpace
from components.tune.sweep import Sweep, SweepPlan, Trial
from components.tune.trial import TrainFunction, TrialSettings


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
) -> Artifact:
    """Runs every trial and writes the `sweep` artifact.

    A restart in the same work folder goes on from its journal: trials that ended are not run again, the others
    continue from their checkpoints.

    Args:
        inputs: `dataset`.
        train: What trains a trial; None is `components.train.loop.train`.

    Raises:
        StageError: If all trials failed, with the first one's reason.
    """
    dataset = open_artifact(inputs["dataset"], kind="dataset")
    sweep = open_sweep(config, dataset.digest, context)
    settings = TrialSettings(
        task=config.task,
        model=config.model,
        train=config.train,
        seed=config.seed,
        dataset=dataset.path,
        work_folder=context.work_folder,
    )
    run_trials(sweep, settings, train or _default_train(), context)
    winner = sweep.winner()
    if winner is None:
        raise _all_failed(sweep)
    with write_artifact(output, "sweep", inputs, context) as draft:
        write_sweep(draft, sweep, winner, config)
    assert draft.artifact is not None
    return draft.artifact


def open_sweep(config: StageConfig, dataset_digest: str, context: Context) -> Sweep:
    """The sweep of this work folder: a new one, or what an earlier start left of it."""
    plan = make_plan(config)
    reporter = Reporter(context, plan, count_trials(plan.tune, plan.space))
    journal = Journal(context.work_folder / "trials.jsonl", owner_digest(config, dataset_digest))
    sweep = Sweep(plan, journal, reporter)
    reporter.resume(sweep.in_order())
    sweep.retell()
    return sweep


def make_plan(config: StageConfig) -> SweepPlan:
    """What the sweep's decisions depend on."""
    from components.tasks import get_task

    task = get_task(config.task)
    epochs = min(config.train.epochs, config.tune.max_epochs or config.train.epochs)
    return SweepPlan(
        config.tune,
        SearchSpace(config.tune, config.model, config.train),
        config.seed,
        epochs,
        task.deciding_metric,
        task.mode,
    )


def owner_digest(config: StageConfig, dataset_digest: str) -> str:
    """Names the sweep by its settings and data. Concurrency is left out: it may change between two starts."""
    settings = config.model_copy(update={"tune": config.tune.model_copy(update={"concurrency": None})})
    return hashlib.sha256(f"{settings.model_dump_json()}\n{dataset_digest}".encode()).hexdigest()


def run_trials(sweep: Sweep, settings: TrialSettings, train: TrainFunction, context: Context) -> None:
    """Runs what is left, on Ray or (debug) here."""
    if context.debug:
        from components.tune.runners import run_here

        run_here(sweep, settings, train)
    else:
        from components.tune.ray_runner import run_on_ray

        run_on_ray(sweep, settings, train, sweep.plan.tune.concurrency, context.warn)


def write_sweep(draft: Draft, sweep: Sweep, winner: Trial, config: StageConfig) -> None:
    """Fills the artifact. Its content holds no times, so that a resumed sweep gives the same bytes."""
    metric, mode = sweep.plan.metric, sweep.plan.mode
    model, train = apply_config(config.model, config.train, winner.config)
    value = winner.best(metric, mode)[metric]
    best = {
        "trial": winner.number,
        "config": winner.config,
        "metric": {"name": metric, "value": value, "split": "validation"},
        "model": model.model_dump(mode="json"),
        "train": train.model_dump(mode="json"),
    }
    draft.write_json("trials.json", [describe(trial, sweep.plan) for trial in sweep.in_order()])
    draft.write_json("best.json", best)
    seconds = [{"trial": trial.number, "seconds": trial.ended_s - trial.started_s} for trial in sweep.in_order()]
    draft.write_json("timing.json", seconds, content=False)
    draft.metadata = {**best, "trials": sweep.total}


def describe(trial: Trial, plan: SweepPlan) -> dict[str, Any]:
    """A trial's line in trials.json; `metrics` are those of its best epoch on validation."""
    return {
        "trial": trial.number,
        "config": trial.config,
        "state": trial.state,
        "metrics": trial.best(plan.metric, plan.mode),
        "epochs": len(trial.reports),
        "chosen_by": trial.chosen_by,
        "reason": trial.reason,
    }


def _all_failed(sweep: Sweep) -> StageError:
    # The next start tries anew: what made them all fail (memory, a library) may be mended by then.
    sweep.journal.set_aside()
    first = sweep.in_order()[0]
    return StageError(f"All {sweep.total} trials failed; the first with: {first.reason}.")


def _default_train() -> TrainFunction:
    from components.train.loop import train

    return train
