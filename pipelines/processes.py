"""Processes and file locks by facts that survive pid reuse: a pid is trusted only with its start time."""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import time
from collections.abc import Iterable
from pathlib import Path

CLOCK_TICKS_AFTER_NAME = 19  # field 22 of /proc/PID/stat, counted behind the command's closing parenthesis


def start_time(pid: int) -> int | None:
    """Clock ticks after boot at which `pid` started, or None when there is no such process (or only its zombie)."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] == "Z" else int(fields[CLOCK_TICKS_AFTER_NAME])


def is_alive(pid: int, started: int) -> bool:
    """Whether the process that had `pid` and started at `started` still runs."""
    return start_time(pid) == started


def session_members(session_id: int) -> list[int]:
    """Pids of all processes of a session."""
    members = []
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        try:
            if os.getsid(int(entry)) == session_id and start_time(int(entry)) is not None:
                members.append(int(entry))
        except (ProcessLookupError, PermissionError):
            continue
    return members


def signal_all(pids: Iterable[int], number: signal.Signals) -> None:
    """Sends a signal to each process that is still there."""
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue


def end_session(session_id: int, grace_s: float = 5.0, spare: frozenset[int] = frozenset()) -> None:
    """Ends every process of a session: SIGTERM, up to `grace_s`, then SIGKILL until none is left."""
    signal_all([pid for pid in session_members(session_id) if pid not in spare], signal.SIGTERM)
    deadline = time.monotonic() + grace_s
    while time.monotonic() < deadline and set(session_members(session_id)) - spare:
        time.sleep(0.1)
    for _ in range(50):
        left = set(session_members(session_id)) - spare
        if not left:
            return
        signal_all(left, signal.SIGKILL)
        time.sleep(0.1)


class FileLock:
    """An advisory lock on a file that the kernel drops when its holder dies, however it dies."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor: int | None = None

    def acquire(self, shared: bool = False, wait_s: float = 0.0) -> bool:
        """Tries to take the lock for up to `wait_s`; writes our pid into the file when it is exclusive."""
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
        deadline = time.monotonic() + wait_s
        while True:
            try:
                fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    os.close(descriptor)
                    return False
                time.sleep(0.1)
        if not shared:
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, str(os.getpid()).encode(), 0)
        self._descriptor = descriptor
        return True

    def release(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def holder(self) -> str:
        """The pid written by the last exclusive holder, or `unknown`."""
        try:
            return self.path.read_text().strip() or "unknown"
        except FileNotFoundError:
            return "unknown"


def free_port(host: str = "127.0.0.1") -> int:
    """A TCP port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        return probe.getsockname()[1]


def port_answers(host: str, port: int, timeout_s: float = 0.5) -> bool:
    """Whether something accepts connections there."""
    try:
        with socket.create_connection((host, port), timeout_s):
            return True
    except OSError:
        return False
