"""Trainings of any number of workers, each a process that begins with everything imported: a fork of one that waits.

Importing torch and DeepSpeed takes each worker seconds; here one process does it once.
"""

from __future__ import annotations

import multiprocessing
import os
import secrets
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from multiprocessing.process import BaseProcess as Process
from pathlib import Path
from typing import Any

from components.train.job import TrainJob
from tests.components.train.jobs import PairWorker

Work = Callable[[TrainJob, PairWorker], None]


def run_ranks(work: Work, job: TrainJob, world_size: int, folder: Path, stop_at: int = 0) -> list[int]:
    """Runs `work` as each rank of a group of `world_size`; gives their exit codes.

    Args:
        folder: Where they meet.
        stop_at: All are killed by SIGKILL right after the checkpoint of this epoch; 0 does the whole work.
    """
    return join_ranks(start_ranks(work, job, world_size, folder, stop_at))


def start_ranks(work: Work, job: TrainJob, world_size: int, folder: Path, stop_at: int = 0) -> list[Process]:
    """The processes of `run_ranks`, just started."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.components.train.preload"])
    meeting = folder / f"meet-{secrets.token_hex(4)}"
    processes = [
        context.Process(target=run_rank, args=(work, job, meeting, rank, world_size, stop_at))
        for rank in range(world_size)
    ]
    for process in processes:
        process.start()
    return list(processes)


def join_ranks(processes: Sequence[Process], timeout_s: float | None = None) -> list[int]:
    """Exit codes of all, when they have ended; what has not within `timeout_s` is killed and fails."""
    deadline_s = None if timeout_s is None else time.monotonic() + timeout_s
    for process in processes:
        process.join(None if deadline_s is None else max(0.0, deadline_s - time.monotonic()))
    late = [rank for rank, process in enumerate(processes) if process.is_alive()]
    for rank in late:
        processes[rank].kill()
        processes[rank].join()
    assert not late, f"ranks {late} had not ended after {timeout_s} s"
    return [process.exitcode or 0 for process in processes]


def train_ranks(job: TrainJob, world_size: int, folder: Path, stop_at: int = 0) -> None:
    """Trains, and raises if the workers did not all end as they should."""
    codes = run_ranks(train_rank, job, world_size, folder, stop_at)
    # One may hear of the other's death before its own.
    assert codes == [0] * world_size if not stop_at else -signal.SIGKILL in codes, codes


def train_rank(job: TrainJob, worker: PairWorker) -> None:
    from components.train.loop import train

    train(job, worker)


LEDGER_NAME = "steps.txt"
STEP_S = 0.005
"""What a step of `train_in_steps` takes longer: time for something to happen to it."""


@dataclass
class LedgerWorker(PairWorker):
    """Writes down every step that is taken, as soon as it is."""

    ledger: Path | None = None

    def progress(self, step: int, total: int, metrics: Mapping[str, float]) -> None:
        assert self.ledger is not None
        with self.ledger.open("a") as handle:
            handle.write(f"{step}\n")
        time.sleep(STEP_S)


def read_ledger(job: TrainJob) -> list[int]:
    """Steps in the order in which they were taken, by all attempts."""
    ledger = job.work_folder / LEDGER_NAME
    return [int(line) for line in ledger.read_text().split()] if ledger.exists() else []


def train_in_steps(job: TrainJob, worker: PairWorker) -> None:
    """Trains with a ledger; what SIGTERM does is left as it is."""
    from components.train import meter
    from components.train.loop import train

    meter.INTERVAL_S = 0.0
    train(job, LedgerWorker(**vars(worker), ledger=job.work_folder / LEDGER_NAME))


def train_till_asked(job: TrainJob, worker: PairWorker) -> None:
    """As `python -m components.train`: a SIGTERM ends it with a checkpoint."""
    from components.errors import PreemptedError
    from components.train.preemption import note_sigterm, sigterm_asks

    note_sigterm()
    try:
        # As the launcher of one worker does it, and as a worker of a group.
        with sigterm_asks(job.work_folder) if worker.world_size == 1 else nullcontext():
            train_in_steps(job, worker)
    except PreemptedError as error:
        sys.exit(error.exit_code)


def run_rank(work: Work, job: TrainJob, meeting: Path, rank: int, world_size: int, stop_at: int) -> None:
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world_size))
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=world_size)
    work(job, PairWorker(stop_at=stop_at, rank=rank, world_size=world_size, local_rank=rank))


def gather_state(job: TrainJob, worker: PairWorker) -> None:
    """Continues from the checkpoint, if there is one, and writes the whole state; the same after two steps, and saves.

    `state/NUMBER.safetensors` holds the float32 weights and moments of every parameter, and the buffers.
    """
    from safetensors.torch import save_file

    from components.train.loop import train_step
    from components.train.saving import save, settle
    from components.train.session import open_session

    session = open_session(job, worker)
    folder = job.work_folder / "state"
    for again in (False, True):
        if again:
            for _ in range(2):
                train_step(session)
                session.progress.step += 1
        elif session.facts["resumed_from_step"] is None:
            continue
        state = whole_state(session.engine)
        if worker.rank == 0:
            folder.mkdir(exist_ok=True)
            save_file(state, folder / f"{len(list(folder.iterdir()))}.safetensors")
    save(session)
    settle(session)
    session.close()


def load_as_it_is(job: TrainJob, worker: PairWorker) -> None:
    """The checkpoint by DeepSpeed alone; ends well only if that is refused."""
    import pytest

    from components.train import resume
    from components.train.session import Session, open_session

    def load(opened: Session, folder: Path, world_size: int) -> None:
        opened.engine.load(folder)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Exception, match="not currently supported"):
        patch.setattr(resume, "restore_resharded", load)
        open_session(job, worker)


def whole_state(engine: Any) -> dict[str, Any]:
    """Float32 weights and both moments by name, the buffers, and the optimizer's own step counters."""
    import torch
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

    optimizer = engine.engine.optimizer
    state = {name: value.clone() for name, value in engine.module.named_buffers()}
    for name, parameter in engine.module.named_parameters():
        state[f"{name}.fp32"] = safe_get_full_fp32_param(parameter).clone()
        for moment in ("exp_avg", "exp_avg_sq"):
            gather = safe_get_full_optimizer_state if engine.stage == 3 else partial(gather_moment, optimizer)
            state[f"{name}.{moment}"] = gather(parameter, moment).clone()
    steps = {float(each["step"]) for each in optimizer.state.values() if "step" in each}
    state["steps"] = torch.tensor(sorted(steps))
    return state


def gather_moment(optimizer: Any, parameter: Any, moment: str) -> Any:
    """A moment out of the flat partitions of stages 1 and 2; DeepSpeed's own function loses them after a step."""
    import torch
    import torch.distributed as dist

    whole, mapping = torch.zeros(parameter.numel()), parameter._hp_mapping
    if mapping is not None:
        number = next(n for n, group in enumerate(optimizer.bit16_groups) if any(parameter is each for each in group))
        part, place = mapping.lp_fragment_address, mapping.get_hp_fragment_address()
        flat = optimizer.state[optimizer.single_partition_of_fp32_groups[number]][moment]
        whole[part.start : part.start + part.numel] = flat[place.start : place.start + place.numel]
    dist.all_reduce(whole)
    return whole
