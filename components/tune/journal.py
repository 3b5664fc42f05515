"""The append-only record of a sweep: every suggestion, report and end, on the disk before the next decision is made.

One JSON document a line, each with a check sum. A torn last line (its writer was killed) is cut off; anything else that
does not read back is damage, and a sweep on damaged records would not be the same sweep.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from components.artifacts.local_store import write_durably
from components.context import append_line
from components.errors import StageError

Record = dict[str, Any]


class Journal:
    """`trials.jsonl` of one sweep.

    Args:
        path: The file; made with its first line.
        owner: Digest of what was searched how: records of another sweep are refused.
        about: Kept in the first record, so that the journal alone tells what its sweep was.
        begin: Records of earlier sweeps that a new journal begins with.

    Attributes:
        is_new: Whether no earlier start of this sweep left anything.
        count: Records by now.
        last: The newest of them.
    """

    def __init__(
        self, path: Path, owner: str, about: Mapping[str, Any] | None = None, begin: Sequence[Record] = ()
    ) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        cut_torn_line(path)
        records = self.read()
        self.is_new = not records
        if self.is_new:
            self._begin({"kind": "sweep", "owner": owner, "about": dict(about or {}), "time": time.time()}, begin)
            records = self.read()
        elif records[0].get("owner") != owner:
            raise StageError(f"{path} belongs to another sweep; remove that folder, or run with --fresh to start anew.")
        # Not all of them: a sweep of many trials would hold each twice.
        self.count, self.last = len(records), records[-1]

    def _begin(self, first: Record, more: Sequence[Record]) -> None:
        """Writes the first records, all of them or none."""
        records = [json.loads(json.dumps(record, default=str)) for record in (first, *more)]
        lines = [json.dumps({**record, "check": check_sum(record)}, separators=(",", ":")) for record in records]
        write_durably(self.path, "\n".join(lines) + "\n")

    def read(self) -> list[Record]:
        """All records by now, from the disk."""
        return read_records(self.path)

    def append(self, kind: str, **values: Any) -> Record:
        """Writes one record and waits until it is on the disk."""
        # Through JSON at once, so that what is used now equals what a restart will read.
        record = json.loads(json.dumps({"kind": kind, **values, "time": time.time()}, default=str))
        append_line(self.path, {**record, "check": check_sum(record)}, durable=True)
        self.count, self.last = self.count + 1, record
        return record

    def set_aside(self) -> None:
        """Lets the next start begin anew; what was recorded stays readable beside it."""
        self.path.replace(self.path.with_name(f"{self.path.stem}.{time.time_ns()}.failed{self.path.suffix}"))


def cut_torn_line(path: Path) -> None:
    """Removes what stands after the last line end, so that the next line does not grow out of it."""
    if not path.exists():
        return
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        with path.open("r+b") as handle:
            handle.truncate(whole)
            os.fsync(handle.fileno())


def read_records(path: Path) -> list[Record]:
    """All records of a journal without a torn line.

    Raises:
        StageError: Naming the first line that is damaged.
    """
    if not path.exists():
        return []
    return parse_records(path, path.read_bytes())


def parse_records(path: Path, content: bytes) -> list[Record]:
    """The records in some bytes of a journal.

    Raises:
        StageError: Naming the first line that is damaged.
    """
    return [_read_record(path, number, line) for number, line in enumerate(content.splitlines(), start=1)]


def _read_record(path: Path, number: int, line: bytes) -> Record:
    try:
        record = json.loads(line)
        if record.pop("check") == check_sum(record):
            return record
    except (ValueError, KeyError, AttributeError):
        pass
    raise StageError(f"{path} is damaged in line {number}; restore the file, or run with --fresh to search anew.")


def check_sum(record: Mapping[str, Any]) -> str:
    """Eight hex digits over the record as JSON gives it back."""
    text = json.dumps(record, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:8]
