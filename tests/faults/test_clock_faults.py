"""Row A16: workers that start apart, and a wall clock that is set forward and back while a training runs."""

from __future__ import annotations

import ast
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from components.artifacts import Artifact
from components.context import read_lines
from components.train.checkpoint import CheckpointFolder
from components.train.job import TrainJob
from components.train.loop import train
from components.train.result import job_digest
from pipelines.processes import FileLock
from pipelines.ray_keeper import endpoint_records, keep
from pipelines.run import RunOptions, prepare
from pipelines.spec import load_spec
from tests.builders import write_digits
from tests.command import SMALL
from tests.components.train.jobs import FakeWorker, PairWorker, make_job
from tests.components.train.ranks import read_ledger, run_ranks, train_in_steps, train_rank

pytestmark = [pytest.mark.faults, pytest.mark.usefixtures("one_thread"), pytest.mark.timeout(1800)]

ROOT = Path(__file__).resolve().parents[2]
APART_S = 1.5
STEP_S = 3600.0
PAIR = {"workers": 2, "zero": {"stage": 2}, "max_steps": 24, "validate_every_steps": 8}
RECORDED_ONLY = {
    # What is written beside a record for people, and the seconds that the view shows.
    "components/context.py": 2, "components/train/meter.py": 1, "components/train/restarts.py": 1,
    "components/tune/journal.py": 2, "pipelines/changes.py": 1, "pipelines/view.py": 2,
}  # fmt: skip


def start_apart(delays_s: tuple[float, float], seed: int, job: TrainJob, worker: PairWorker) -> None:
    """Trains on a wall clock that jumps by an hour, either way, each time it is read."""
    generator, real = random.Random(seed), time.time
    time.time = lambda: real() + generator.choice((-STEP_S, 0.0, STEP_S))
    time.sleep(delays_s[worker.rank])
    train_in_steps(job, worker)


def test_A16_workers_that_start_apart_on_a_jumping_clock_share_one_folder(
    digits: Artifact, tmp_path: Path, repeats: Callable[[int, int], int]
) -> None:
    whole = make_job(digits, tmp_path / "whole", **PAIR)
    assert run_ranks(train_rank, whole, 2, tmp_path) == [0, 0]
    expected = train(whole, FakeWorker())
    for number in range(repeats(2, 50)):
        generator = random.Random(number)
        delays_s = (generator.uniform(0, APART_S), generator.uniform(0, APART_S))
        print(f"seed {number}: delays {delays_s}")
        place = tmp_path / f"launch{number}"
        place.mkdir()
        job = make_job(digits, place / "job", **PAIR)
        assert run_ranks(partial(start_apart, delays_s, number), job, 2, tmp_path) == [0, 0]
        assert [path.name for path in place.iterdir()] == ["job"]
        checkpoints = CheckpointFolder(job.work_folder / "checkpoints", job.key_file, job_digest(job), 2, keep=2)
        assert sorted(path.name for path in checkpoints.folder.iterdir()) == [
            "fence", "latest", "step-00000016", "step-00000024",
        ]  # fmt: skip
        assert [checkpoints.check(checkpoints.path(step)) for step in (16, 24)] == [None, None]
        assert read_ledger(job) == list(range(1, 25))
        assert train(job, FakeWorker()).weights.read_bytes() == expected.weights.read_bytes()


def name_by_clock(job: TrainJob, worker: PairWorker) -> None:
    time.sleep(APART_S * worker.rank)
    (job.work_folder / time.strftime("run-%H-%M-%S")).mkdir(parents=True)


def test_A16_control_a_clock_in_the_path_gives_each_worker_a_folder(digits: Artifact, tmp_path: Path) -> None:
    """As loggers name their runs by default, and a trainer its checkpoints."""
    job = make_job(digits, tmp_path / "job")
    assert run_ranks(name_by_clock, job, 2, tmp_path) == [0, 0]
    assert len(list(job.work_folder.glob("run-*"))) == 2


def test_A16_a_command_finds_its_run_whatever_the_clock_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_digits(tmp_path / "digits.parquet", 200)
    loaded = load_spec({**SMALL, "data": {**SMALL["data"], "source": str(source)}})
    folders, real = [], time.time
    for shift_s in (0.0, STEP_S, -STEP_S):
        monkeypatch.setattr(time, "time", lambda shift_s=shift_s: real() + shift_s)
        folders.append(prepare(loaded, RunOptions(), tmp_path / "home"))
    assert len({folder.run_id for folder in folders}) == 1
    assert len([path for path in (tmp_path / "home" / "runs").iterdir() if path.is_dir()]) == 1
    lock, other = folders[0].lock(), folders[1].lock()
    assert lock.acquire()
    monkeypatch.setattr(time, "time", lambda: real() + 24 * STEP_S)
    assert not other.acquire(wait_s=0.2)
    lock.release()
    assert not read_lines(folders[0].events_path)


@pytest.mark.parametrize("shift_s", [-STEP_S, STEP_S])
def test_A16_a_ray_with_an_endpoint_is_kept_and_one_without_is_not(
    shift_s: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when the clock was set back between the start of Ray and the deployment."""
    monkeypatch.setattr("pipelines.ray_keeper.IDLE_S", 0.3)
    monkeypatch.setattr("pipelines.ray_keeper.POLL_S", 0.05)
    (tmp_path / "endpoints").mkdir()
    old = tmp_path / "endpoints" / "old.json"
    old.write_text("{}")
    left = endpoint_records(tmp_path)
    endpoint = tmp_path / "endpoints" / "small.json"
    endpoint.write_text("{}")
    now_s = time.time() + shift_s
    os.utime(endpoint, (now_s, now_s))
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1)"]) as ray:
        keep(tmp_path, ray, left)
        assert ray.poll() is not None  # it was kept to its own end
    endpoint.unlink()
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as ray:
        keep(tmp_path, ray, left)
        assert ray.poll() is None
        ray.kill()
    assert not FileLock(tmp_path / "ray" / "lease").acquire()


def clock_reads(path: Path) -> int:
    """Places that read the wall clock, or the time of a file to compare it."""
    names = {("time", "time"), ("datetime", "now"), ("datetime", "utcnow"), ("datetime", "today"), ("date", "today")}
    nodes = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)]
    return sum(isinstance(node.value, ast.Name) and (node.value.id, node.attr) in names for node in nodes)


def test_A16_no_decision_reads_the_wall_clock() -> None:
    sources = [*ROOT.glob("components/**/*.py"), *ROOT.glob("pipelines/**/*.py"), ROOT / "penstock.py"]
    found = {str(path.relative_to(ROOT)): count for path in sources if (count := clock_reads(path))}
    assert found == RECORDED_ONLY
