from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from components.artifacts.local_store import write_durably
from components.errors import SpecError
from pipelines.processes import start_time
from pipelines.ray_cluster import RayCluster, refuse_open_cluster
from pipelines.ray_keeper import endpoint_records


def test_a_record_of_an_endpoint_is_known_again_until_another_takes_its_place(tmp_path: Path) -> None:
    (tmp_path / "endpoints").mkdir()
    assert endpoint_records(tmp_path) == set()
    record = tmp_path / "endpoints" / "digits.json"
    write_durably(record, "{}")
    left = endpoint_records(tmp_path)
    assert len(left) == 1 and endpoint_records(tmp_path) == left
    write_durably(record, "{}")
    os.utime(record, (0, 0))  # by a clock that was set back
    assert endpoint_records(tmp_path) - left


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
