"""The training loop: a plain function of a job and the worker it runs as.

    result = train(job, worker)

It runs in one process, under `torchrun` (`python -m components.train JOB.json`) or as a Ray Train worker, always the
same way. A round is: train to the next validation (an epoch, or `validate_every_steps`), validate, keep the best
weights, checkpoint, report. Killed at any moment, the same call continues from the newest whole checkpoint and ends bit
for bit where it would have ended.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from components.artifacts.local_store import sync_path
from components.errors import StageError
from components.imports import without_collection
from components.train.augment import augment_images
from components.train.disk import Place, together, write_patiently
from components.train.engine import Update
from components.train.evaluation import evaluate
from components.train.failures import count_preemptions, count_restarts
from components.train.feed import Inputs
from components.train.finite import check_weights
from components.train.job import TrainJob, TrainResult, Worker, warn
from components.train.optimizer import weight_penalty
from components.train.order import micro_batch
from components.train.out_of_memory import is_out_of_memory, out_of_memory
from components.train.plan.measure import MemoryWatch
from components.train.plan.states import FP32_BYTES
from components.train.preemption import AskedToStop, leave_if_asked, preempted
from components.train.release import release_heap
from components.train.result import read_result, write_result
from components.train.resume import roll_back
from components.train.saving import save, settle
from components.train.schedule import rate_factor
from components.train.session import Session, open_session
from components.train.watch import Watch, look_for_spikes, look_for_stragglers, note_loss, own_work

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
        StageError: If the loss is no longer finite, or the memory is too small.
        CheckpointError: If there were checkpoints, but none that can be used.
        PreemptedError: If a worker was asked to stop; the steps that were taken are in a checkpoint.
    """
    recorded = read_result(job)
    if recorded is not None:
        return recorded
    job.work_folder.mkdir(parents=True, exist_ok=True)
    memory = MemoryWatch.start()
    try:
        with without_collection():
            session = open_session(job, worker)
        try:
            return train_session(session, memory)
        finally:
            session.close()
    except (MemoryError, RuntimeError) as error:
        if is_out_of_memory(error):
            raise out_of_memory(job, worker, error) from error
        raise


def train_session(session: Session, memory: MemoryWatch) -> TrainResult:
    """All rounds that are left, and the outcome."""
    tell_last_round(session)
    while not done(session):
        try:
            run_round(session)
        except RolledBack:
            continue
        except AskedToStop:
            # A checkpoint of the last step of a round may be there: a validation that was left is made again.
            if session.progress.step != session.saved_step:
                save(session)
            settle(session)
            raise preempted(session.progress.step) from None
    session.facts["peak_memory_bytes"] = memory.peak_bytes()
    return finish(session)


class RolledBack(Exception):
    """The session went back to a checkpoint: its round begins anew."""


def tell_last_round(session: Session) -> None:
    """After a restart, reports the checkpoint's round again: a kill may have come between checkpoint and report."""
    if session.progress.history:
        last = {name: value for name, value in session.progress.history[-1].items() if name not in ("epoch", "step")}
        session.worker.report(session.progress.epoch, last)


def done(session: Session) -> bool:
    """Whether all rounds were made, or the deciding metric has stood still for the patience of `early_stop`.

    Steps would not tell: asked to stop after the last one, a training has its last validation before it.
    """
    progress, early_stop = session.progress, session.job.train.early_stop
    stopped = early_stop is not None and progress.epoch - progress.improved_epoch >= early_stop.patience
    return progress.epoch >= session.rounds.count or (stopped and progress.epoch > 0)


def run_round(session: Session) -> None:
    """Trains up to the next validation, measures, makes it durable and reports it."""
    progress, train_config = session.progress, session.job.train
    with session.meter.running():
        train_loss = train_round(session)
    look_for_stragglers(session)
    rate = train_config.learning_rate * factor_at(session, progress.step - 1)
    with session.weights_to_keep():
        metrics = validate(session)
        note_round(session, metrics, train_loss, rate)
    # Not before: a validation that is left is made again from a checkpoint of its round's last step.
    session.loss_sum = 0.0
    if done(session) or is_due(session):
        save(session)
        settle(session)
    session.worker.report(progress.epoch, {**metrics, "train_loss": train_loss, "learning_rate": rate})
    tell_speed(session)


def is_due(session: Session) -> bool:
    """Whether a checkpoint is due after a validation."""
    progress, train_config = session.progress, session.job.train
    if train_config.checkpoint_every_steps is None:
        return progress.epoch % train_config.checkpoint_every_epochs == 0
    return progress.step % train_config.checkpoint_every_steps == 0


def note_round(session: Session, metrics: dict[str, float], train_loss: float, rate: float) -> None:
    """Writes a round into the history, and keeps its weights if they are the best so far."""
    progress = session.progress
    progress.epoch += 1
    place = {"epoch": progress.epoch, "step": progress.step}
    progress.history.append({**place, "train_loss": train_loss, "learning_rate": rate, **metrics})
    if improves(session, metrics):
        progress.improved_epoch = progress.epoch
    if is_best(session, metrics):
        keep_best(session, metrics)


def train_round(session: Session) -> float:
    """The steps up to the next validation; gives their mean training loss over all workers."""
    every = session.job.train.checkpoint_every_steps
    begin, end = session.rounds.bounds(session.progress.epoch)
    session.engine.module.train()
    while session.progress.step < end:
        if session.progress.step in session.progress.skipped:
            session.progress.step += 1
            continue
        loss, update = train_step(session)
        session.progress.step += 1
        if update is Update.TAKEN:
            session.loss_sum = session.loss_sum + loss
            if session.average is not None:
                session.average.update()
            note_loss(session, loss / session.shape.accumulation)
            tell_progress(session, loss / session.shape.accumulation)
        elif update is Update.OVERFLOW:
            session.progress.overflowed.append(session.progress.step - 1)
        else:
            leave_out_step(session)
        session.meter.count_step()
        if every and session.progress.step % every == 0 and session.progress.step < end:
            session.meter.pause()
            beside = session.job.train.saves_beside()
            save(session, copy=beside)
            if not beside:
                settle(session)
            session.meter.go_on()
        leave_if_asked(session)
    settle(session)
    look_for_spikes(session)
    return mean_loss(session, end - begin - left_out(session, begin, end))


def train_step(session: Session) -> tuple[torch.Tensor, Update]:
    """One optimizer step; gives the sum of this worker's losses over its micro batches, and what became of the step."""
    step, shape = session.progress.step, session.shape
    rate = session.job.train.learning_rate * factor_at(session, step)
    order, total, update = session.order(shape.epoch_of(step)), None, Update.WAITING
    for part in range(shape.accumulation):
        with own_work(session):
            with session.meter.waiting():
                inputs, labels = session.training.batch(micro_batch(order, step, part, session.group.rank, shape))
            loss = batch_loss(session, inputs, labels)
        session.engine.backward(loss)
        if session.work is not None:
            session.meter.flops += session.work.flops(inputs)
        update = session.engine.step(rate)
        total = loss.detach() if total is None else total + loss.detach()
    assert total is not None
    return total, update


def leave_out_step(session: Session) -> None:
    """Notes a step without a finite gradient, which changed nothing.

    After too many in a row the weights themselves are doubtful: training goes back to the newest checkpoint, from which
    it comes here again and passes those steps by.

    Raises:
        RolledBack: If it went back.
        StageError: If it cannot go back, or one more step fails after it did.
    """
    progress, limit = session.progress, session.job.train.max_skipped_steps
    step = progress.step - 1
    many = len(progress.skipped) >= limit and set(range(step - limit, step)) <= set(progress.skipped)
    progress.skipped.append(step)
    rows = micro_batch(session.order(session.shape.epoch_of(step)), step, 0, session.group.rank, session.shape)
    where = f"step {step + 1} (rows {', '.join(map(str, rows[:4]))}, ... of worker {session.group.rank})"
    if session.group.rank == 0:
        warn(session.worker, f"The gradient was not finite at {where}: the step is left out.")
    if not many:
        return
    if progress.rollbacks or not roll_back(session):
        raise diverged(session, f"the gradient was not finite {limit + 1} times in a row, last at {where}")
    if session.group.rank == 0:
        warn(session.worker, f"After {limit + 1} such steps in a row training goes back to {session.progress.step}.")
    session.watch = Watch()
    raise RolledBack


def left_out(session: Session, begin: int, end: int) -> int:
    """Steps of a round that changed nothing."""
    return sum(begin <= step < end for step in (*session.progress.skipped, *session.progress.overflowed))


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
    return rate_factor(session.job.train.schedule, step, session.rounds.total_steps, session.shape.steps_per_epoch)


def tell_progress(session: Session, loss: torch.Tensor) -> None:
    """About once a second: looks at the loss (which waits for a GPU, so not at every step) and tells the worker."""
    if not session.meter.due():
        return
    step, value = session.progress.step, check_finite(session, float(loss))
    session.watch.sampling = True
    if session.group.rank == 0:
        session.worker.progress(step, session.rounds.total_steps, {"loss": value, **session.meter.pace(step)})


def tell_speed(session: Session) -> None:
    """At a validation: how fast it goes, for a worker that wants to know. Not a part of its report, which is the same
    however fast a machine is."""
    tell = getattr(session.worker, "speed", None)
    if tell is not None and session.group.rank == 0:
        pace = session.meter.pace(session.progress.step)
        tell(session.progress.epoch, {name: value for name, value in pace.items() if name != "eta_s"})


def mean_loss(session: Session, steps: int) -> float:
    """The mean of a round over the steps that were taken, micro batches and workers."""
    import torch

    if not steps:
        raise diverged(session, "no step of the round had a finite gradient")

    tensor = torch.as_tensor(session.loss_sum, dtype=torch.float32, device=session.group.device)
    return check_finite(session, float(session.group.gather(tensor).mean()) / (steps * session.shape.accumulation))


def check_finite(session: Session, loss: float) -> float:
    """Gives the loss back.

    Raises:
        StageError: If it is infinite or not a number; nothing of such a round is kept.
    """
    if math.isfinite(loss):
        return loss
    raise diverged(session, f"the loss is {loss} at step {session.progress.step}")


def diverged(session: Session, what: str) -> StageError:
    return StageError(
        f"Training diverged: {what}; lower train.learning_rate ({session.job.train.learning_rate:g}) or "
        "train.gradient_clipping.",
        field="train.learning_rate",
    )


def validate(session: Session) -> dict[str, float]:
    """The task's metrics on the validation split, the same on every rank."""
    release_heap()
    outputs = evaluate(session.engine, session.task, session.validation, session.group, lambda: leave_if_asked(session))
    release_heap()
    metrics = session.task.metrics(outputs, session.validation.true_labels())
    if session.bytes_per_token is not None:
        metrics["bits_per_byte"] = metrics["loss"] / math.log(2) / session.bytes_per_token
    return metrics


def improves(session: Session, metrics: dict[str, float]) -> bool:
    """Whether this epoch beats the last one that did by more than `min_delta`; the first one does."""
    progress, early_stop = session.progress, session.job.train.early_stop
    if not progress.best_metrics:
        return True
    last = progress.history[progress.improved_epoch - 1]
    return gain(session, metrics, last) > (early_stop.min_delta if early_stop else 0.0)


def is_best(session: Session, metrics: dict[str, float]) -> bool:
    """Whether this epoch beats all before by the deciding metric, or is as good at a lower loss.

    A small validation split gives many epochs the same accuracy; the loss tells them apart.
    """
    best = session.progress.best_metrics
    if not best:
        return True
    more = gain(session, metrics, best)
    return more > 0 or (more == 0 and metrics["loss"] < best["loss"])


def gain(session: Session, metrics: Mapping[str, float], before: Mapping[str, float]) -> float:
    """By how much the deciding metric is better than before."""
    more = metrics[session.task.deciding_metric] - before[session.task.deciding_metric]
    return more if session.task.mode == "max" else -more


def keep_best(session: Session, metrics: dict[str, float]) -> None:
    """Makes this epoch the best one; its weights, gathered from all shards, go to a file of their own."""
    check_weights(session)
    session.progress.best_epoch, session.progress.best_metrics = session.progress.epoch, dict(metrics)
    target = session.best_weights()
    unchecked = target.with_name(f".{target.name}.{session.checkpoints.fence}")
    place = Place("the best weights", target.parent, FP32_BYTES * session.facts["parameters"])
    write = partial(write_best, session, unchecked, target)
    write_patiently(
        session.group, place, write, partial(unchecked.unlink, missing_ok=True), partial(warn, session.worker)
    )


def write_best(session: Session, unchecked: Path, target: Path) -> None:
    """Writes the weights to `target` and removes the best ones before; ends on all ranks alike.

    Args:
        unchecked: Where they lie until it is known that no other attempt has taken over.
    """
    group = session.group
    together(group, lambda: target.parent.mkdir(parents=True, exist_ok=True))
    together(group, lambda: session.engine.write_weights(unchecked))
    together(group, lambda: keep_alone(session, unchecked, target) if group.rank == 0 else None)


def keep_alone(session: Session, unchecked: Path, target: Path) -> None:
    """Waits until a file is on the disk, gives it its name, then removes those before."""
    sync_path(unchecked)
    session.checkpoints.check_fence()
    unchecked.rename(target)
    sync_path(target.parent)
    for old in target.parent.iterdir():
        # A writer that is held up here, and goes on late, must not remove what its successor has kept since.
        if old.name < target.name:
            old.unlink(missing_ok=True)


def finish(session: Session) -> TrainResult:
    """The outcome; rank 0 records it."""
    progress, meter = session.progress, session.meter
    facts = {
        **session.facts,
        "steps": progress.step,
        "skipped_steps": len(progress.skipped),
        "overflowed_steps": len(progress.overflowed),
        "rollbacks": progress.rollbacks,
        "accepted_changes": progress.accepted,
        "loss_spikes": len(progress.spikes),
        "restarts": count_restarts(session.job.work_folder),
        "preemptions": count_preemptions(session.job.work_folder),
        "seconds": round(meter.seconds, 3),
        **{name: round(value, 4) for name, value in meter.pace(progress.step).items() if name != "eta_s"},
    }
    result = TrainResult(progress.best_epoch, progress.best_metrics, progress.history, session.best_weights(), facts)
    write_patiently(
        session.group,
        Place("the result", session.job.work_folder, len(str(result))),
        lambda: together(session.group, lambda: record(session, result) if session.group.rank == 0 else None),
        lambda: None,
        partial(warn, session.worker),
    )
    return result


def record(session: Session, result: TrainResult) -> None:
    session.checkpoints.check_fence()
    write_result(session.job, result)
