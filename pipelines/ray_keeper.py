"""Leads the session that one local Ray lives in, and ends it when nobody needs it any more.

Run as `python -m pipelines.ray_keeper HOME` by `ray_cluster.ensure_ray`, in a session of its own, so that an endpoint
can outlive the command that deployed it and nothing else does.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from pipelines.processes import FileLock, end_session, free_port, port_answers, start_time
from pipelines.ray_cluster import (
    START_TIMEOUT_S,
    RayCluster,
    forget_record,
    ray_folder,
    temp_dir,
    write_record,
)

HOST = "127.0.0.1"
IDLE_S = 12.0
POLL_S = 0.5
GRACE_S = 5.0


def start_command(home: Path, port: int, dashboard_port: int) -> list[str]:
    """The `ray start` line: loopback wherever Ray lets us choose, and no port that another cluster may have."""
    folder = temp_dir(home)
    return [
        sys.executable, "-m", "pipelines.ray_start", "--head", "--block", "--disable-usage-stats",
        f"--node-ip-address={HOST}", f"--port={port}", f"--temp-dir={folder}",
        "--include-dashboard=true", f"--dashboard-host={HOST}", f"--dashboard-port={dashboard_port}",
        f"--dashboard-agent-listen-port={free_port()}",
    ]  # fmt: skip


def endpoint_records(home: Path) -> set[tuple[str, int, int]]:
    """What tells one record of an endpoint from the next: each is a file of its own.

    Its time is part of the name only: a clock that is set back must not make a new record an old one.
    """
    records = ((path, path.stat()) for path in (home / "endpoints").glob("*.json"))
    return {(path.name, status.st_ino, status.st_mtime_ns) for path, status in records}


def main() -> int:
    home = Path(sys.argv[1])
    port, dashboard_port = free_port(), free_port()
    left = endpoint_records(home)  # of a Ray that died
    ray = subprocess.Popen(start_command(home, port, dashboard_port), stdin=subprocess.DEVNULL)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        deadline = time.monotonic() + START_TIMEOUT_S
        while not port_answers(HOST, port):
            if ray.poll() is not None or time.monotonic() > deadline:
                return 1
            time.sleep(0.1)
        own_start = start_time(os.getpid())
        assert own_start is not None
        write_record(home, RayCluster(f"{HOST}:{port}", f"http://{HOST}:{dashboard_port}", os.getpid(), own_start))
        keep(home, ray, left)
        return 0
    finally:
        # Steps that use this Ray see by the record that it is gone. What is left of a dead one has nothing to save.
        forget_record(home)
        end_session(os.getpid(), grace_s=GRACE_S if ray.poll() is None else 0.0, spare=frozenset({os.getpid()}))


def keep(home: Path, ray: subprocess.Popen, left: set[tuple[str, int, int]]) -> None:
    """Returns when Ray has ended, or when it has been idle for `IDLE_S`: no lease held, no endpoint deployed.

    Args:
        left: Records of endpoints that were there before this Ray, and died with the one before.
    """
    idle_since = time.monotonic()
    lease = FileLock(ray_folder(home) / "lease")
    while ray.poll() is None:
        time.sleep(POLL_S)
        if endpoint_records(home) - left or not lease.acquire():
            idle_since = time.monotonic()
        elif time.monotonic() - idle_since > IDLE_S:
            # The lease stays ours until the session is gone, so that no command adopts a dying cluster.
            return
        else:
            lease.release()


if __name__ == "__main__":
    sys.exit(main())
