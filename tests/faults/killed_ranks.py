"""Groups of ranks that are killed: each is a fork of a process that has everything imported.

Ranks(work, job, 2, folder).end_after(lambda: True, 0.3)
"""

from __future__ import annotations

import errno
import multiprocessing
import os
import secrets
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from components.train.job import TrainJob
from tests.components.train.jobs import PairWorker
from tests.components.train.ranks import run_rank

DEADLINE_S = 240.0
DELAYS_S = (0.05, 2.0)
Work = Callable[[TrainJob, PairWorker], None]


class Ranks:
    """One life of a training: its ranks run until they end or are killed.

    Args:
        work: What each rank does.
        job: What is trained.
        world_size: Number of ranks.
        folder: Where they meet.
    """

    def __init__(self, work: Work, job: TrainJob, world_size: int, folder: Path) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["tests.components.train.preload"])
        meeting = folder / f"meet-{secrets.token_hex(4)}"
        self.processes = [
            context.Process(target=run_rank, args=(work, job, meeting, rank, world_size, 0))
            for rank in range(world_size)
        ]
        for process in self.processes:
            process.start()

    def end_after(self, ready: Callable[[], bool], seconds: float) -> bool:
        """Kills all ranks `seconds` after `ready`; False if they ended by themselves before.

        Raises:
            AssertionError: If one failed by itself, or they neither got ready nor ended.
        """
        deadline_s, due_s = time.monotonic() + DEADLINE_S, None
        while any(process.is_alive() for process in self.processes):
            now_s = time.monotonic()
            assert now_s < deadline_s, self.kill() or "neither ready nor ended"
            if due_s is None and ready():
                due_s = now_s + seconds
            if due_s is not None and now_s >= due_s:
                failed = [process.exitcode for process in self.processes if process.exitcode]
                self.kill()
                assert not failed, failed
                return True
            time.sleep(0.002)
        codes = [process.exitcode for process in self.processes]
        assert codes == [0] * len(codes), codes
        return False

    def wait(self) -> list[int | None]:
        """Exit codes of ranks that end by themselves, None of one that did not in time (it is killed)."""
        deadline_s = time.monotonic() + DEADLINE_S
        for process in self.processes:
            process.join(max(0.0, deadline_s - time.monotonic()))
        codes = [process.exitcode for process in self.processes]
        self.kill()
        return codes

    def kill(self) -> None:
        for process in self.processes:
            if process.pid is not None and process.is_alive():
                os.kill(process.pid, signal.SIGKILL)
        for process in self.processes:
            process.join()


def trained_slowly(number: float, job: TrainJob, worker: PairWorker) -> None:
    """Trains as usual; rank 0 writes down each step, and each save takes a little longer."""
    train_with_delay(0.005, job, worker)


def late_rank(number: float, job: TrainJob, worker: PairWorker) -> None:
    """The last rank writes 0.05 to 2 s late."""
    train_with_delay(DELAYS_S[0] * (DELAYS_S[1] / DELAYS_S[0]) ** number if worker.rank else 0.0, job, worker)


def train_with_delay(delay_s: float, job: TrainJob, worker: PairWorker) -> None:
    from components.train import loop
    from components.train.saving import Saving

    write, step = Saving._run, loop.train_step

    def write_late(saving: Saving) -> None:
        time.sleep(delay_s)
        write(saving)

    def step_and_tell(opened: Any) -> Any:
        told = step(opened)
        if worker.rank == 0:
            note(job, opened.progress.step + 1)
        return told

    Saving._run, loop.train_step = write_late, step_and_tell  # type: ignore[method-assign]
    loop.train(job, worker)


def note(job: TrainJob, step: int) -> None:
    with (job.work_folder / "steps").open("a") as handle:
        handle.write(f"{os.getpid()} {step}\n")


def steps_of(job: TrainJob) -> list[tuple[int, int]]:
    path = job.work_folder / "steps"
    lines = path.read_text().splitlines() if path.exists() else []
    return [(int(line.split()[0]), int(line.split()[1])) for line in lines]


def save_by_deepspeed(job: TrainJob, worker: PairWorker) -> None:
    """DeepSpeed's own checkpoints, one after the other; rank 1 writes 0.3 s late."""
    engine = bare_deepspeed(job, worker)
    write = engine.checkpoint_engine.save

    def write_late(*values: Any, **named: Any) -> None:
        time.sleep(0.3 * worker.rank)
        write(*values, **named)

    engine.checkpoint_engine.save = write_late
    for number in range(1000):
        engine.save_checkpoint(str(job.work_folder), tag=f"step-{number}")


def load_by_deepspeed(job: TrainJob, worker: PairWorker) -> None:
    """Its newest checkpoint; fails in the way it does."""
    path, _ = bare_deepspeed(job, worker).load_checkpoint(str(job.work_folder))
    assert path is not None


def bare_deepspeed(job: TrainJob, worker: PairWorker) -> Any:
    """DeepSpeed's engine without any of our own around it."""
    import deepspeed
    from torch import nn, optim

    # Else it would be compiled now, and killed while it is.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist_backend="gloo", verbose=False)
    module = nn.Linear(8, 4)
    config = {"train_batch_size": worker.world_size, "zero_optimization": {"stage": 2}}
    engine, *_ = deepspeed.initialize(model=module, optimizer=optim.AdamW(module.parameters()), config=config)
    return engine


def writes_fail_on_rank_1(number: int, times: int) -> Work:
    """Trains while DeepSpeed's files of rank 1 cannot be written, that many times."""
    return partial(_train_with_failures, number, times)


def _train_with_failures(number: int, times: int, job: TrainJob, worker: PairWorker) -> None:
    from components.errors import StageError
    from components.train import deepspeed_engine, disk, loop

    left, write = [times if worker.rank == 1 else 0], deepspeed_engine.write_torch
    disk.POLL_INTERVAL_S, disk.RETRY_INTERVAL_S = 0.02, 0.1

    def fail(state: Any, path: Path) -> None:
        if left[0]:
            left[0] -= 1
            raise OSError(number, os.strerror(number), str(path))
        write(state, path)

    deepspeed_engine.write_torch = fail
    try:
        loop.train(job, worker)
    except StageError as error:
        (job.work_folder / f"said.{worker.rank}").write_text(error.message)
    assert left[0] == 0 or times > 1000


def save_alone_fails(job: TrainJob, worker: PairWorker) -> None:
    """DeepSpeed's own save where rank 1 gets an input/output error."""
    engine = bare_deepspeed(job, worker)
    if worker.rank == 1:
        engine.checkpoint_engine.save = _fail
    try:
        engine.save_checkpoint(str(job.work_folder), tag="step")
    except OSError:
        (job.work_folder / f"failed.{worker.rank}").touch()
        time.sleep(DEADLINE_S)
    (job.work_folder / f"saved.{worker.rank}").touch()


def _fail(*values: Any, **named: Any) -> None:
    raise OSError(errno.EIO, os.strerror(errno.EIO))
