"""Row A14: a training that needs more memory than it may have, by the process's own limit and by its container's."""

from __future__ import annotations

import os
import resource
import secrets
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from components.artifacts import Artifact
from components.context import read_lines
from components.errors import OutOfMemoryError
from components.train.job import TrainJob
from tests.builders import make_context
from tests.components.train.jobs import FakeWorker, PairWorker, make_job
from tests.components.train.ranks import run_ranks

pytestmark = [pytest.mark.faults, pytest.mark.usefixtures("one_thread")]

ROOT = Path(__file__).resolve().parents[2]
LARGE = {"architecture": "mlp", "hidden_sizes": [4000, 4000]}
"""Weights of 64 MiB; with gradients and moments four times that."""
ROOM_BYTES = 128 * 2**20
LIMIT_BYTES = 96 * 2**20


def limit_own_memory() -> None:
    """Lets this process take no more than 128 MiB beyond what it has."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + ROOM_BYTES, resource.RLIM_INFINITY))


def train_in_little(job: TrainJob, worker: PairWorker) -> None:
    from components.train.loop import train

    limit_own_memory()
    try:
        train(job, FakeWorker())
    except OutOfMemoryError as error:
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        (job.work_folder / "told").write_text(error.message)
        sys.exit(7)


def step_in_little(job: TrainJob, worker: PairWorker) -> None:
    """What torch alone says."""
    import torch

    limit_own_memory()
    try:
        torch.empty(2 * ROOM_BYTES, dtype=torch.uint8)
    except RuntimeError as error:
        job.work_folder.mkdir(parents=True)
        (job.work_folder / "told").write_text(str(error))
        sys.exit(7)


def test_A14_a_process_at_its_limit_says_how_much_it_took_and_what_to_change(digits: Artifact, tmp_path: Path) -> None:
    job = make_job(digits, tmp_path / "job", LARGE)
    assert run_ranks(train_in_little, job, 1, tmp_path) == [7]
    told = (job.work_folder / "told").read_text()
    assert told.startswith("Training ran out of memory on cpu (at most ") and " GiB in use); " in told
    assert "set train." in told or "lower train.global_batch_size" in told or "take a smaller model" in told


def test_A14_control_torch_alone_names_neither(digits: Artifact, tmp_path: Path) -> None:
    job = make_job(digits, tmp_path / "job", LARGE)
    assert run_ranks(step_in_little, job, 1, tmp_path) == [7]
    told = (job.work_folder / "told").read_text()
    assert "in use" not in told and "accumulation" not in told


@pytest.fixture
def memory_group() -> Iterator[Path]:
    """A memory control group with a limit; needs root, and version 1 of them."""
    root = Path("/sys/fs/cgroup/memory")
    own = next(
        (line.split(":", 2)[2] for line in Path("/proc/self/cgroup").read_text().splitlines() if ":memory:" in line), ""
    )
    parent = next((folder for folder in (root / own.lstrip("/"), root) if (folder / "tasks").exists()), root)
    folder = parent / f"penstock-{secrets.token_hex(4)}"
    try:
        folder.mkdir()
        (folder / "memory.limit_in_bytes").write_text(str(LIMIT_BYTES))
    except OSError as error:
        pytest.skip(f"no memory control group can be made here ({error})")
    yield folder
    folder.rmdir()


WATCH = """
import subprocess, sys
from pathlib import Path
from components.memory_kills import count_kills, killed
Path(sys.argv[1], "tasks").write_text(str(__import__("os").getpid()))
before = count_kills()
done = subprocess.run([sys.executable, "-c", "x = bytearray(1 << 30); x[::4096] = bytes(len(x[::4096]))"])
print(done.returncode, count_kills() - before)
print(killed("A stage").message)
"""


def test_A14_a_process_that_the_kernel_killed_is_labelled(memory_group: Path) -> None:
    command = [sys.executable, "-c", WATCH, str(memory_group)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=True)
    first, told = done.stdout.splitlines()
    # The control: all that its own parent hears is a signal, and nothing was printed.
    assert first == f"{-signal.SIGKILL} 1" and done.stderr == ""
    assert "killed by the kernel because the memory limit of 0.09 GiB was reached (at most 0.09 GiB in use)" in told


def test_A14_a_group_is_started_again_once_and_then_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ray.exceptions import ActorDiedError
    from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError

    from components.train import restarts
    from components.train.failures import count_restarts

    kills = iter((0, 1, 1, 2))
    monkeypatch.setattr(restarts, "count_kills", lambda: next(kills))
    context = make_context(tmp_path, "train")
    policy = restarts.RestartPolicy(context.work_folder, context, limit=10)
    dead = {1: WorkerHealthCheckFailedError("A worker health check failed.", ActorDiedError())}
    policy.after_exception(None, dead)
    policy.after_exception(None, dead)  # another death, which was not the memory
    with pytest.raises(OutOfMemoryError, match="twice, was killed by the kernel"):
        policy.after_exception(None, dead)
    assert count_restarts(context.work_folder) == 2
    first, second = [event["text"] for event in read_lines(context.run_folder / "events.jsonl")]
    assert "memory limit" in first and "memory limit" not in second
