"""The training loop: a plain function of a job and the worker it runs as.

    result = train(job, worker)

It runs in one process, under `torchrun` (`python -m components.train JOB.json`) or as a Ray Train worker, always the
same way. An epoch is: train, validate, keep the best weights, checkpoint, report. Killed at any moment, the same call
continues from the newest whole checkpoint and ends bit for bit where it would have ended.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from components.artifacts.local_store import sync_path
from components.errors import StageError
from components.models.folder import save_weights
from components.train.augment import augment_images
from components.train.evaluation import evaluate
from components.train.feed import Inputs
from components.train.job import TrainJob, TrainResult, Worker
from components.train.optimizer import weight_penalty
from components.train.order import epoch_order, micro_batch
from components.train.result import read_result, write_result
from components.train.schedule import rate_factor
from components.train.session import Session, open_session, save

if TYPE_CHECKING:
    import torch


def train(job: TrainJob, worker: Worker) -> TrainResult:
    """Trains to the end, or from where an earlier call with this work folder was stopped.

    Args:
        job: What is trained. A finished one is answered at once from its work folder.
        worker: Who this process is. With more than one worker the process group must exist. A sweep stops a trial by
            raising from `worker.report`; that goes through.

    Returns:
        The best epoch's metrics and weights; the same values on every rank.

    Raises:
        StageError: If the loss is no longer finite.
        CheckpointError: If there were checkpoints, but none that can be used.
    """
    recorded = read_result(job)
    if recorded is not None:
        return recorded
    job.work_folder.mkdir(parents=True, exist_ok=True)
    session = open_session(job, worker)
    try:
        tell_last_epoch(session)
        while not done(session):
            run_epoch(session)
        return finish(session)
    finally:
        session.engine.close()


def tell_last_epoch(session: Session) -> None:
    """After a restart, reports the checkpoint's epoch again: a kill may have come between checkpoint and report."""
    if session.progress.history:
        last = {name: value for name, value in session.progress.history[-1].items() if name != "epoch"}
        session.worker.report(session.progress.epoch, last)


def done(session: Session) -> bool:
    """Whether all epochs are trained, or the deciding metric has stood still for the patience of `early_stop`."""
    progress, early_stop = session.progress, session.job.train.early_stop
    stopped = early_stop is not None and progress.epoch - progress.improved_epoch >= early_stop.patience
    return progress.epoch >= session.job.train.epochs or (stopped and progress.epoch > 0)


def run_epoch(session: Session) -> None:
    """Trains one epoch, measures it, makes it durable and reports it."""
    progress = session.progress
    train_loss = train_epoch(session)
    session.group.average_buffers(session.engine.module)
    metrics = validate(session)
    progress.epoch += 1
    rate = session.job.train.learning_rate * factor_at(session, session.step - 1)
    progress.history.append({"epoch": progress.epoch, "train_loss": train_loss, "learning_rate": rate, **metrics})
    if improves(session, metrics):
        progress.improved_epoch = progress.epoch
    if improves(session, metrics) or breaks_tie(session, metrics):
        keep_best(session, metrics)
    if done(session) or progress.epoch % session.job.train.checkpoint_every_epochs == 0:
        save(session)
    session.worker.report(progress.epoch, {**metrics, "train_loss": train_loss, "learning_rate": rate})


def train_epoch(session: Session) -> float:
    """One pass over the training split; gives the mean training loss over all workers."""
    train_config, shape = session.job.train, session.shape
    order = epoch_order(session.job.seed, session.progress.epoch, shape)
    total: torch.Tensor | float = 0.0
    session.engine.module.train()
    for index in range(shape.steps_per_epoch):
        step = session.step + index
        rate = train_config.learning_rate * factor_at(session, step)
        for part in range(shape.accumulation):
            inputs, labels = session.training.batch(micro_batch(order, index, part, session.group.rank, shape))
            loss = batch_loss(session, inputs, labels)
            session.engine.backward(loss)
            session.engine.step(rate)
            total = total + loss.detach()
        tell_progress(session, step + 1, loss)
    return mean_loss(session, total)


def batch_loss(session: Session, inputs: Inputs, labels: torch.Tensor) -> torch.Tensor:
    """The task's loss of a micro batch, images changed at random, plus the penalties on the weights."""
    train_config = session.job.train
    if "pixel_values" in inputs:
        inputs = {**inputs, "pixel_values": augment_images(train_config.augment, inputs["pixel_values"])}
    logits = session.engine.forward(inputs)
    loss = session.task.loss(logits, labels, train_config.regularize.label_smoothing)
    penalty = weight_penalty(train_config.regularize, session.engine.module)
    return loss if penalty is None else loss + penalty


def factor_at(session: Session, step: int) -> float:
    return rate_factor(session.job.train.schedule, step, session.meter.total_steps, session.shape.steps_per_epoch)


def tell_progress(session: Session, step: int, loss: torch.Tensor) -> None:
    """About once a second: looks at the loss (which waits for a GPU, so not at every step) and tells the worker."""
    if not session.meter.due():
        return
    value = check_finite(session, float(loss.detach()), step)
    if session.group.rank == 0:
        session.worker.progress(step, session.meter.total_steps, {"loss": value, **session.meter.pace(step)})


def mean_loss(session: Session, total: torch.Tensor | float) -> float:
    """The mean over micro batches and workers."""
    import torch

    tensor = torch.as_tensor(total, dtype=torch.float32, device=session.group.device)
    mean = float(session.group.gather(tensor).mean()) / (session.shape.steps_per_epoch * session.shape.accumulation)
    return check_finite(session, mean, session.step + session.shape.steps_per_epoch)


def check_finite(session: Session, loss: float, step: int) -> float:
    """Gives the loss back.

    Raises:
        StageError: If it is infinite or not a number; nothing of such an epoch is kept.
    """
    if math.isfinite(loss):
        return loss
    raise StageError(
        f"Training diverged: the loss is {loss} at step {step} of epoch {session.progress.epoch + 1}; lower "
        f"train.learning_rate ({session.job.train.learning_rate:g}) or train.gradient_clipping.",
        field="train.learning_rate",
    )


def validate(session: Session) -> dict[str, float]:
    """The task's metrics on the validation split, the same on every rank."""
    logits = evaluate(session.engine, session.validation, session.group)
    return session.task.metrics(logits, session.validation.split.labels())


def improves(session: Session, metrics: dict[str, float]) -> bool:
    """Whether this epoch beats the best so far by more than `min_delta`; the first one does."""
    best, task, early_stop = session.progress.best_metrics, session.task, session.job.train.early_stop
    if not best:
        return True
    gain = metrics[task.deciding_metric] - best[task.deciding_metric]
    return (gain if task.mode == "max" else -gain) > (early_stop.min_delta if early_stop else 0.0)


def breaks_tie(session: Session, metrics: dict[str, float]) -> bool:
    """Whether this epoch is as good as the best so far by the deciding metric, at a lower loss.

    A small validation split gives many epochs the same accuracy; the loss tells them apart.
    """
    best, name = session.progress.best_metrics, session.task.deciding_metric
    return metrics[name] == best[name] and metrics["loss"] < best["loss"]


def keep_best(session: Session, metrics: dict[str, float]) -> None:
    """Makes this epoch the best one; its weights, gathered from all shards, go to a file of their own."""
    session.progress.best_epoch, session.progress.best_metrics = session.progress.epoch, dict(metrics)
    weights = session.engine.weights()
    if weights is None:
        return
    target = session.best_weights()
    target.parent.mkdir(parents=True, exist_ok=True)
    save_weights(target, weights)
    sync_path(target)
    for old in target.parent.iterdir():
        if old != target:
            old.unlink()


def finish(session: Session) -> TrainResult:
    """The outcome; rank 0 records it."""
    progress, meter = session.progress, session.meter
    pace = meter.pace(session.step)
    facts = {
        **session.facts,
        "steps": session.step,
        "seconds": round(meter.seconds, 3),
        "samples_per_s": round(pace["samples_per_s"], 1),
    }
    result = TrainResult(progress.best_epoch, progress.best_metrics, progress.history, session.best_weights(), facts)
    if session.group.rank == 0:
        write_result(session.job, result)
    session.group.barrier()
    return result
