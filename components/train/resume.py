"""Going on from a checkpoint: all workers from the same one, also where other workers wrote it."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.errors import CheckpointError, PenstockError
from components.train.checkpoint import CheckpointFolder
from components.train.disk import Place, together, write_patiently
from components.train.group import Group
from components.train.job import Worker, warn
from components.train.loss_scale import LossScale
from components.train.nvme import uses_nvme
from components.train.plan.states import FP32_BYTES
from components.train.progress import Progress
from components.train.randomness import load_states, read_loss_sum, seed_everything
from components.train.reshard import make_universal
from components.train.saving import AVERAGE_NAME, BEST_NAME, settle, states_name

if TYPE_CHECKING:
    from components.train.session import Session


def agree_on_checkpoint(checkpoints: CheckpointFolder, group: Group, worker: Worker) -> dict[str, Any] | None:
    """The checkpoint that rank 0 found, told to all ranks, so that none starts from another one.

    Raises:
        CheckpointError: On every rank, if rank 0 could not find one that it may use.
    """
    answer = group.broadcast(look_for_checkpoint(checkpoints, worker) if group.rank == 0 else None)
    checkpoints.fence = answer["fence"]
    if "error" in answer:
        raise CheckpointError(answer["error"])
    return answer["found"]


def look_for_checkpoint(checkpoints: CheckpointFolder, worker: Worker) -> dict[str, Any]:
    """{"fence", "found": {"folder", "state", ...} or None}, or {"fence", "error": sentence}."""
    try:
        if not checkpoints.fence:
            checkpoints.take_over()
        found = checkpoints.find(partial(warn, worker))
    except PenstockError as error:
        return {"fence": checkpoints.fence, "error": error.message}
    except OSError as error:
        reason = (
            f"{checkpoints.folder} cannot be searched for checkpoints ({error}); make it readable and writable, and "
            "run the same command again."
        )
        return {"fence": checkpoints.fence, "error": reason}
    if found is None:
        return {"fence": checkpoints.fence, "found": None}
    facts = {"folder": str(found.folder), "world_size": found.world_size, "changes": list(found.changes)}
    return {"fence": checkpoints.fence, "found": {**facts, "state": dict(found.state)}}


def restore(session: Session, found: Mapping[str, Any]) -> None:
    """Loads a checkpoint that was checked: engine, generators, and the best weights so far."""
    folder, group = Path(found["folder"]), session.group
    session.saved_step = session.progress.step
    if found["world_size"] == group.world_size:
        session.engine.load(folder)
        session.loss_sum = load_states(folder / states_name(group.rank))
    else:
        restore_resharded(session, folder, found["world_size"])
    if session.progress.loss_scale is not None:
        session.engine.loss_scale = LossScale(**session.progress.loss_scale)
    if session.average is not None:
        session.average.load(folder / AVERAGE_NAME)
    best = session.best_weights()
    place = Place("the best weights", best.parent, FP32_BYTES * session.facts["parameters"])
    kept = group.rank == 0 and session.progress.best_epoch
    write = partial(take_best, session.checkpoints, folder, best) if kept else lambda: None
    discard = partial(best.unlink, missing_ok=True)
    write_patiently(group, place, lambda: together(group, write), discard, partial(warn, session.worker))


def take_best(checkpoints: CheckpointFolder, folder: Path, target: Path) -> None:
    """Puts a checkpoint's best weights where training keeps them."""
    checkpoints.check_fence()
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(folder / BEST_NAME, target)


def restore_resharded(session: Session, folder: Path, world_size: int) -> None:
    """The same from another number of workers: shards are divided anew, each worker goes on from a seed of its own.

    The rows of a step are the same for any number of workers, so nothing is trained twice or left out.
    """
    job, group = session.job, session.group
    universal = job.work_folder / "universal"
    if job.train.zero.stage and not uses_nvme(job.train.zero):
        outcome: dict[str, Any] = {}
        if group.rank == 0:
            try:
                make_universal(folder, universal)
            except CheckpointError as error:
                outcome = {"error": error.message}
        outcome = group.broadcast(outcome)
        if "error" in outcome:
            raise CheckpointError(outcome["error"])
        session.engine.load(universal, universal=True)
        group.barrier()
        if group.rank == 0:
            shutil.rmtree(universal)
    else:
        session.engine.load(folder)
    sums = [read_loss_sum(folder / states_name(rank)) for rank in range(world_size)]
    session.loss_sum = sum(sums) / world_size
    seed_everything(job.seed + session.progress.step, group.rank)
    if group.rank == 0:
        warn(session.worker, f"The checkpoint of step {session.progress.step} was written by {world_size} workers and "
                             f"is now divided among {group.world_size}.")  # fmt: skip


def roll_back(session: Session) -> bool:
    """Goes back to the newest checkpoint, remembering which steps to leave out; False if there is none."""
    settle(session)
    skipped, rollbacks = session.progress.skipped, session.progress.rollbacks
    found = agree_on_checkpoint(session.checkpoints, session.group, session.worker)
    if found is None:
        return False
    session.progress = Progress(**found["state"])
    session.progress.skipped = sorted({*session.progress.skipped, *skipped})
    session.progress.rollbacks = rollbacks + 1
    restore(session, found)
    return True
