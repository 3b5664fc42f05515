from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from components.errors import SpecError
from pipelines.processes import start_time
from pipelines.ray_cluster import RayCluster, record_path, refuse_open_cluster, write_record
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


@pytest.mark.parametrize("address", ["10.0.0.7:6379", "ray://head.example:10001", "[2001:db8::1]:6379"])
def test_security_2_another_machines_ray_is_refused_without_its_token(address: str) -> None:
    refuse_open_cluster(address, "token")
    with pytest.raises(SpecError, match="RAY_AUTH_MODE=token"):
        refuse_open_cluster(address, None)


@pytest.mark.parametrize("address", ["auto", "127.0.0.1:6379", "localhost:6379", "[::1]:6379"])
def test_security_2_a_ray_on_this_machine_may_be_named_without(address: str) -> None:
    refuse_open_cluster(address, None)
