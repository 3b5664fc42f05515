"""Trainings of any number of workers, each a process that begins with everything imported: a fork of one that waits.

Importing torch and DeepSpeed takes each worker seconds; here one process does it once.
"""

from __future__ import annotations

import multiprocessing
import os
import secrets
import signal
from collections.abc import Callable
from functools import partial
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
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.components.train.preload"])
    meeting = folder / f"meet-{secrets.token_hex(4)}"
    processes = [
        context.Process(target=_run_rank, args=(work, job, meeting, rank, world_size, stop_at))
        for rank in range(world_size)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    return [process.exitcode or 0 for process in processes]


def train_ranks(job: TrainJob, world_size: int, folder: Path, stop_at: int = 0) -> None:
    """Trains, and raises if the workers did not all end as they should."""
    codes = run_ranks(train_rank, job, world_size, folder, stop_at)
    # One may hear of the other's death before its own.
    assert codes == [0] * world_size if not stop_at else -signal.SIGKILL in codes, codes


def train_rank(job: TrainJob, worker: PairWorker) -> None:
    from components.train.loop import train

    train(job, worker)


def _run_rank(work: Work, job: TrainJob, meeting: Path, rank: int, world_size: int, stop_at: int) -> None:
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
    from components.train.session import open_session, save

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
    session.engine.close()


def load_as_it_is(job: TrainJob, worker: PairWorker) -> None:
    """The checkpoint by DeepSpeed alone; ends well only if that is refused."""
    import pytest

    from components.train import session

    def load(opened: session.Session, folder: Path, world_size: int) -> None:
        opened.engine.load(folder)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Exception, match="not currently supported"):
        patch.setattr(session, "restore_resharded", load)
        session.open_session(job, worker)


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
