"""components/tune/leftovers.py: what a trial started goes, what was there before stays."""

from __future__ import annotations

import subprocess
import sys

import psutil

from components.tune.leftovers import leftovers_ended

SLEEP = [sys.executable, "-c", "import time; time.sleep(1000)"]
PARENT = [
    sys.executable,
    "-c",
    f"import subprocess, time; print(subprocess.Popen({SLEEP}).pid, flush=True); time.sleep(1000)",
]


def test_children_and_theirs_are_ended_and_older_ones_and_theirs_stay():
    older = subprocess.Popen(PARENT, stdout=subprocess.PIPE, text=True)
    below_older = int(older.stdout.readline())
    with leftovers_ended():
        newer = subprocess.Popen(PARENT, stdout=subprocess.PIPE, text=True)
        below_newer = int(newer.stdout.readline())
    assert newer.poll() is not None or not psutil.pid_exists(newer.pid)
    assert not psutil.pid_exists(below_newer) or psutil.Process(below_newer).status() == psutil.STATUS_ZOMBIE
    assert older.poll() is None and psutil.pid_exists(below_older)
    psutil.Process(below_older).kill()
    older.kill()
    older.wait()
