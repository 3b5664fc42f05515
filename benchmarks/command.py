"""Runs the real `penstock` command for a benchmark, each run in a home of its own, and ends what it left."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class TimedRun:
    """One run of the command.

    Attributes:
        result: What `penstock run --json` printed.
        seconds: From the command's start to its end, start of Ray included.
    """

    result: dict[str, Any]
    seconds: float


def run_once(arguments: list[str]) -> TimedRun:
    """As `kept_run`, for a benchmark that needs nothing but the result."""
    with kept_run(arguments) as run:
        return run


@contextmanager
def kept_run(arguments: list[str]) -> Iterator[TimedRun]:
    """Runs the command with nothing running and nothing cached before; its artifacts go with the block."""
    with own_home() as home:
        yield run_in(home, arguments)


@contextmanager
def own_home() -> Iterator[Path]:
    """An empty `PENSTOCK_HOME`, and an end to everything in it."""
    home = Path(tempfile.mkdtemp(prefix="bench-"))
    try:
        yield home
    finally:
        stop = [sys.executable, "-m", "pipelines.cli", "stop"]
        subprocess.run(stop, env={**os.environ, "PENSTOCK_HOME": str(home)}, capture_output=True, check=False)
        shutil.rmtree(home, ignore_errors=True)


def run_in(home: Path, arguments: list[str]) -> TimedRun:
    """Runs `penstock run ... --json`.

    Raises:
        SystemExit: If it does not end with 0; prints what it said.
    """
    command = [sys.executable, "-m", "pipelines.cli", "run", *arguments, "--json"]
    started = time.monotonic()
    done = subprocess.run(
        command, env={**os.environ, "PENSTOCK_HOME": str(home)}, capture_output=True, text=True, check=False
    )
    seconds = time.monotonic() - started
    if done.returncode != 0:
        sys.exit(f"penstock run {' '.join(arguments)} ended with {done.returncode}: {done.stdout}{done.stderr}")
    return TimedRun(json.loads(done.stdout), seconds)


def stage_seconds(run: TimedRun) -> str:
    """`data 3 s, tune 60 s, ...`."""
    return ", ".join(f"{name} {stage['seconds']:.0f}" for name, stage in run.result["stages"].items())
