"""What a stage is given besides its config and inputs: where it may write, who it is, and how it reports.

A stage appends what happens to the run's `events.jsonl` (drawn by the command line) and what it measures to
`tracking.jsonl` (carried to MLflow by `components.tracking`). Both files are append-only: one JSON document a line,
one `write` a line, so that several processes may append and a killed one leaves at most one torn line.
"""

from __future__ import annotations

import errno
import json
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

EVENT_SCHEMA = 1


@dataclass(frozen=True)
class Context:
    """The surroundings of one stage of one run. Plain values only: it travels to Ray workers.

    Attributes:
        run_id: Identity of the run (a name and a digest).
        stage: Name of the stage (`data`, `tune`, ...).
        home: `PENSTOCK_HOME`, absolute.
        run_folder: Folder of this run: `events.jsonl`, `tracking.jsonl`, `logs/`.
        work_folder: Scratch and checkpoints of this stage, named by its cache key: a restarted stage finds its own.
        spec_sha256: Digest of the resolved spec.
        code_version: Release and digest of the source files.
        tracking_uri: MLflow's address (`sqlite:///...` or `http://...`).
        offline: Spool tracking only; MLflow is not to be contacted.
        debug: Everything in this process, one worker, no Ray Train group.
    """

    run_id: str
    stage: str
    home: Path
    run_folder: Path
    work_folder: Path
    spec_sha256: str = ""
    code_version: str = ""
    tracking_uri: str = ""
    offline: bool = False
    debug: bool = False

    def event(
        self,
        kind: str,
        step: int | None = None,
        total: int | None = None,
        metrics: Mapping[str, float] | None = None,
        **more: Any,
    ) -> None:
        """Appends one event.

        Kinds: `begin`, `end`, `progress` (step of total, metrics such as loss, samples_per_s, eta_s), `trial` (one
        line a trial: `trial`, `state`, `config`), `metric`, `note` (a `text` for the user), `warning` (a `text`).
        """
        record = {
            "schema": EVENT_SCHEMA,
            "run_id": self.run_id,
            "stage": self.stage,
            "time": time.time(),
            "kind": kind,
            "step": step,
            "total": total,
            "metrics": dict(metrics) if metrics else {},
        }
        append_line(self.run_folder / "events.jsonl", {**record, **more})

    def warn(self, text: str) -> None:
        """Tells the user something that did not stop the stage."""
        self.event("warning", text=text)

    def track(self, kind: str, run: str | None = None, **values: Any) -> None:
        """Appends one line for MLflow: `kind` is `params`, `metrics` (with `step`), `tags`, `artifact` or `status`.

        Args:
            run: Path of the MLflow run under this Penstock run: None is the run itself, `tune` the sweep's,
                `tune/3` its trial 3. Runs are made when first named.
        """
        record = {"time_ms": int(time.time() * 1000), "kind": kind, "run": run, "stage": self.stage, **values}
        append_line(self.run_folder / "tracking.jsonl", record)


def append_line(path: Path, record: Mapping[str, Any], durable: bool = False) -> None:
    """Appends `record` as one JSON line in one write; `durable` waits for the disk.

    Raises:
        OSError: If it does not fit on the disk; what was written of it is a torn line.
    """
    line = (json.dumps(record, separators=(",", ":"), default=str) + "\n").encode()
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        if os.write(descriptor, line) < len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        if durable:
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Reads a JSON-lines file; torn lines are left out."""
    return parse_lines(path.read_bytes()) if path.exists() else []


def parse_lines(content: bytes) -> list[dict[str, Any]]:
    """The records of whole lines; a torn one (its writer was killed, or the disk was full) is left out."""
    records = []
    for line in content.rpartition(b"\n")[0].split(b"\n"):
        with suppress(ValueError):
            records.append(json.loads(line))
    return records


def end_torn_line(path: Path) -> None:
    """Ends a line that a killed writer left open, so that the next record begins on its own."""
    if path.exists() and not path.read_bytes().endswith(b"\n"):
        with path.open("ab") as handle:
            handle.write(b"\n")
