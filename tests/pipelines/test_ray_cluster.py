from __future__ import annotations

import os
import subprocess
from pathlib import Path

from pipelines.processes import start_time
from pipelines.ray_cluster import RayCluster, record_path, write_record
from pipelines.ray_keeper import endpoint_deployed


def test_an_endpoint_older_than_this_ray_does_not_hold_it_up(tmp_path: Path) -> None:
    (tmp_path / "ray").mkdir()
    (tmp_path / "endpoints").mkdir()
    record = tmp_path / "endpoints" / "digits.json"
    record.write_text("{}")
    write_record(tmp_path, RayCluster("127.0.0.1:1", "http://127.0.0.1:2", 1, 1))
    began_s = record_path(tmp_path).stat().st_mtime
    os.utime(record, (began_s - 60, began_s - 60))
    assert not endpoint_deployed(tmp_path)
    os.utime(record, (began_s + 60, began_s + 60))
    assert endpoint_deployed(tmp_path)


def test_a_session_of_a_reused_pid_is_left_alone() -> None:
    other = subprocess.Popen(["sleep", "600"], start_new_session=True)
    started = start_time(other.pid)
    assert started is not None
    RayCluster("", "", other.pid, started - 1).end()
    assert other.poll() is None
    RayCluster("", "", other.pid, started).end()
    assert other.wait() != 0
