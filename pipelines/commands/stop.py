"""`penstock stop [RUN]`: ends one run, or everything of this PENSTOCK_HOME, and leaves no process behind."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import time
from pathlib import Path

from components.errors import StageError
from pipelines.ray_cluster import ray_folder, stop_ray, temp_dir
from pipelines.run_folder import RunFolder, find_run, list_runs, penstock_home

STOP_WAIT_S = 150.0
"""A command ends its stages within 30 s, looks at what they left, and waits up to 60 s for its last metrics."""


def command(options: argparse.Namespace) -> int:
    home = penstock_home()
    folders = [find_run(home, options.run)] if options.run else list_runs(home)
    stopped = [folder.run_id for folder in folders if stop_run(folder)]
    endpoints = [] if options.run else forget_endpoints(home)
    ray = False if options.run else stop_ray(home)
    if not options.run:
        remove_session_files(home)
    if options.json:
        print(json.dumps({"status": "stopped", "runs": stopped, "endpoints": endpoints, "ray": ray}))
        return 0
    what = [f"run {run_id}" for run_id in stopped] + [f"endpoint {name}" for name in endpoints] + ["Ray"] * ray
    print(f"stopped: {', '.join(what)}" if what else "nothing was running")
    return 0


def stop_run(folder: RunFolder) -> bool:
    """Asks the command that owns the run to end it, and waits until it has; returns whether there was one."""
    lock = folder.lock()
    if lock.acquire(shared=True):
        lock.release()
        return False
    holder = lock.holder()
    if holder.isdigit():
        os.kill(int(holder), signal.SIGTERM)
    deadline = time.monotonic() + STOP_WAIT_S
    while time.monotonic() < deadline:
        if lock.acquire(shared=True):
            lock.release()
            return True
        time.sleep(0.1)
    raise StageError(f"{folder.run_id} did not end within {STOP_WAIT_S:.0f} s; its process is {holder}.")


def forget_endpoints(home: Path) -> list[str]:
    """Removes the records of the endpoints, so that nothing holds Ray up.

    On a Ray of the user's own, which goes on, each model is taken away first.
    """
    records = sorted((home / "endpoints").glob("*.json"))
    for record in records:
        if os.environ.get("RAY_ADDRESS"):
            from components.serve.deploy import stop_model

            stop_model(home, record.stem)
        record.unlink(missing_ok=True)
    return [record.stem for record in records]


def remove_session_files(home: Path) -> None:
    """Removes what Ray and HAProxy left of their ended session: sockets, logs and spilled objects."""
    from components.serve.haproxy import private_folder

    shutil.rmtree(temp_dir(home), ignore_errors=True)
    shutil.rmtree(private_folder(ray_folder(home)), ignore_errors=True)
