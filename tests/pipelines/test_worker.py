"""pipelines/worker.py: a step does not wait for a local Ray that is gone."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.processes import start_time
from pipelines.ray_cluster import RayCluster, forget_record, has_died, read_record, write_record

STEP = """
import sys, time
from pathlib import Path
from types import SimpleNamespace
from components.ray_connection import joining
from pipelines.ray_cluster import read_record
from pipelines.run_folder import RunFolder
from pipelines.worker import end_with_ray

if sys.argv[2] == "joining":
    joining.set()
sys.modules["ray"] = SimpleNamespace(is_initialized=lambda: sys.argv[2] == "joined")
home = Path(sys.argv[1])
end_with_ray(RunFolder(home), "tune", home, read_record(home), home / "tune.log")
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def cluster(tmp_path: Path):
    """A record of a Ray whose keeper is a process that waits."""
    keeper = subprocess.Popen(["sleep", "600"], start_new_session=True)
    (tmp_path / "ray").mkdir()
    started = start_time(keeper.pid)
    assert started is not None
    yield RayCluster("127.0.0.1:1", "http://127.0.0.1:2", keeper.pid, started)
    keeper.kill()
    keeper.wait()


def start_step(home: Path, state: str) -> subprocess.Popen[str]:
    step = subprocess.Popen(
        [sys.executable, "-c", STEP, str(home), state], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert step.stdout is not None and step.stdout.readline() == "ready\n"
    return step


@pytest.mark.parametrize(("loss", "state"), [("record", "joined"), ("keeper", "joined"), ("record", "joining")])
def test_a_step_that_uses_a_ray_ends_with_it_and_says_how_to_go_on(tmp_path, cluster, loss, state):
    write_record(tmp_path, cluster)
    step = start_step(tmp_path, state)
    assert step.poll() is None and not has_died(tmp_path, cluster)
    forget_record(tmp_path) if loss == "record" else cluster.end(0)
    assert step.wait(60) == 1
    told = json.loads((tmp_path / "error.json").read_text())
    assert "local Ray died while tune ran" in told["message"] and "run the same command again" in told["message"]
    assert (told["stage"], told["exit_code"]) == ("tune", 1)


def test_a_step_that_has_left_its_ray_goes_on(tmp_path, cluster):
    write_record(tmp_path, cluster)
    step = start_step(tmp_path, "left")
    forget_record(tmp_path)
    assert read_record(tmp_path) is None and has_died(tmp_path, cluster)
    with pytest.raises(subprocess.TimeoutExpired):
        step.wait(2)
    assert step.communicate()[0] == "" and step.returncode == 0
