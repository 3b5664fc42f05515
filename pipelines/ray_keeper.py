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
    record_path,
    temp_dir,
    write_record,
)

HOST = "127.0.0.1"
IDLE_S = 12.0
POLL_S = 1.0


def start_command(home: Path, port: int, dashboard_port: int) -> list[str]:
    """The `ray start` line: loopback wherever Ray lets us choose, and no port that another cluster may have."""
    folder = temp_dir(home)
    return [
        sys.executable, "-m", "pipelines.ray_start", "--head", "--block", "--disable-usage-stats",
        f"--node-ip-address={HOST}", f"--port={port}", f"--temp-dir={folder}",
        "--include-dashboard=true", f"--dashboard-host={HOST}", f"--dashboard-port={dashboard_port}",
        f"--dashboard-agent-listen-port={free_port()}",
    ]  # fmt: skip


def endpoint_deployed(home: Path) -> bool:
    """Whether an endpoint was deployed on this Ray; a record older than the Ray's own is of one that died."""
    began_s = record_path(home).stat().st_mtime
    return any(path.stat().st_mtime >= began_s for path in (home / "endpoints").glob("*.json"))


def main() -> int:
    home = Path(sys.argv[1])
    port, dashboard_port = free_port(), free_port()
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
        keep(home, ray)
        return 0
    finally:
        forget_record(home)
        end_session(os.getpid(), spare=frozenset({os.getpid()}))


def keep(home: Path, ray: subprocess.Popen) -> None:
    """Returns when Ray has ended, or when it has been idle for `IDLE_S`: no lease held, no endpoint deployed."""
    idle_since = time.monotonic()
    lease = FileLock(ray_folder(home) / "lease")
    while ray.poll() is None:
        time.sleep(POLL_S)
        if endpoint_deployed(home) or not lease.acquire():
            idle_since = time.monotonic()
        elif time.monotonic() - idle_since > IDLE_S:
            # The lease stays ours until the session is gone, so that no command adopts a dying cluster.
            return
        else:
            lease.release()


if __name__ == "__main__":
    sys.exit(main())
