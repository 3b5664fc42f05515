from __future__ import annotations

import os
import subprocess
import sys

from pipelines.processes import FileLock, end_session, is_alive, session_members, start_time


def test_a_lock_is_exclusive_and_dropped_when_its_holder_is_killed(tmp_path):
    path = tmp_path / "lock"
    code = (
        "import sys, time; from pathlib import Path; from pipelines.processes import FileLock;"
        "lock = FileLock(Path(sys.argv[1])); assert lock.acquire(); print('held', flush=True); time.sleep(600)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE)
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"held\n"
    lock = FileLock(path)
    assert not lock.acquire()
    assert lock.holder() == str(holder.pid)
    holder.kill()
    holder.wait()
    assert lock.acquire(wait_s=5)
    lock.release()


def test_shared_locks_share(tmp_path):
    first, second = FileLock(tmp_path / "lock"), FileLock(tmp_path / "lock")
    assert first.acquire(shared=True)
    assert second.acquire(shared=True)
    assert not FileLock(tmp_path / "lock").acquire()


def test_a_session_is_ended_whole():
    leader = subprocess.Popen(["sh", "-c", "sleep 600 & sleep 600"], start_new_session=True)
    while len(session_members(leader.pid)) < 3:
        pass
    started = start_time(leader.pid)
    assert started is not None
    end_session(leader.pid, grace_s=0.5)
    assert session_members(leader.pid) == []
    assert not is_alive(leader.pid, started)
    leader.wait()


def test_a_reused_pid_is_another_process():
    started = start_time(os.getpid())
    assert started is not None
    assert is_alive(os.getpid(), started)
    assert not is_alive(os.getpid(), started - 1)
