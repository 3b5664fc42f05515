"""Carries a run's journal (`tracking.jsonl`) to MLflow, exactly once, beside the run.

Stages only append lines; this reads on from where it stopped, and writes down how far it came after each batch. A kill
between sending and writing down sends a batch again, which changes nothing: a metric is identified by its key, step,
time and value, a parameter and a tag by their name. A run of MLflow is looked for by our tags before it is made, and
written down before anything is sent to it: one that was asked for twice, because the first answer was lost, is empty
and is deleted at the end.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.artifacts.local_store import write_durably
from components.context import parse_lines
from components.errors import UnavailableError
from components.tracking.client import ensure_experiment, make_client

if TYPE_CHECKING:
    from mlflow import MlflowClient

JOURNAL, STATE = "tracking.jsonl", "tracking.state.json"
RUN_TAG, PATH_TAG, JOURNAL_TAG = "penstock.run_id", "penstock.path", "penstock.journal"
BATCH_BYTES = 64 << 10
# What one call of MLflow's log_batch takes.
MOST_METRICS, MOST_PARAMS, MOST_TAGS = 1000, 100, 100
LONGEST_VALUE = 6000
ENVELOPE = frozenset({"time_ms", "kind", "run", "stage", "step"})
STATUSES = {"done": "FINISHED", "refused": "FINISHED", "failed": "FAILED", "stopped": "KILLED", "finished": "FINISHED"}


@dataclass(frozen=True)
class Carried:
    """How far a journal was carried.

    Attributes:
        journal: Identity of the journal. Run ids follow from the spec, so another home's run on the same server may
            have the same one.
        bytes: Of the journal that MLflow has taken.
        rejected: Values that MLflow refused for good.
        runs: MLflow's id of the run at each path.
        closed: The end state that MLflow was told, None while the run goes on.
        ended: Paths of the runs that were still open then, and got the same end state.
    """

    journal: str
    bytes: int = 0
    rejected: int = 0
    runs: Mapping[str, str] = field(default_factory=dict)
    closed: str | None = None
    ended: Sequence[str] = ()


class MlflowSync:
    """The carrier of one run's journal. Used by one thread of one process; making it touches neither disk nor network.

    Args:
        run_folder: Where the journal lies, and how far it was carried.
        tracking_uri: MLflow's address.
        run_name: Name of the run as MLflow shows it.
        tags: Tags of the run; `penstock.run_id` is the folder's name unless given.
    """

    def __init__(self, run_folder: Path, tracking_uri: str, run_name: str, tags: Mapping[str, str]) -> None:
        self.run_folder, self.tracking_uri, self.run_name = run_folder, tracking_uri, run_name
        self.tags = {RUN_TAG: run_folder.name, **tags}
        self._client: MlflowClient | None = None
        self._experiment_id = ""

    @property
    def unsent_bytes(self) -> int:
        """Bytes of the journal that MLflow has not taken yet."""
        return unsent_bytes(self.run_folder)

    @property
    def rejected(self) -> int:
        """Values that MLflow refused for good."""
        return self._state().rejected

    def sync(self) -> int:
        """Sends what is new; returns the bytes that are still unsent (a line that is being written).

        Raises:
            UnavailableError: If MLflow does not take it now. Nothing is lost: call again later.
        """
        while True:
            offset = self._state().bytes
            lines, end = read_from(self.run_folder / JOURNAL, offset)
            if end == offset:
                return self.unsent_bytes
            self._guarded(partial(self._send, lines))
            self._note(bytes=end)

    def finish(self, status: str) -> None:
        """Sends the rest and sets the end state of the run and of all runs below it that are still open.

        Args:
            status: `done`, `refused`, `failed` or `stopped`, or MLflow's FINISHED, FAILED, KILLED.
        """
        self.sync()
        self._guarded(partial(self._close, STATUSES.get(status, status)))

    def _close(self, status: str) -> None:
        client = self._connected()
        self._run_id("")
        paths = {run_id: path for path, run_id in self._state().runs.items()}
        ended = set(self._state().ended)
        for run in self._search(f"tags.`{JOURNAL_TAG}` = '{self._state().journal}'"):
            path = paths.get(run.info.run_id)
            if path is None:
                client.delete_run(run.info.run_id)
            elif path == "" or run.info.status == "RUNNING":
                client.set_terminated(run.info.run_id, status)
                ended.add(path)
        self._note(closed=status, ended=sorted(ended))

    def _guarded(self, action: Callable[[], None]) -> None:
        """Runs `action`, turning every way a server can fail into one error."""
        try:
            action()
        except Exception as error:
            self._client = None
            if getattr(error, "error_code", "") == "RESOURCE_DOES_NOT_EXIST":
                # Another database stands behind the address now: the next call sends it everything.
                self._write(Carried(uuid.uuid4().hex))
            reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
            raise UnavailableError(f"MLflow does not take the run's metrics now ({reason}).") from error

    def _state(self) -> Carried:
        """What was written down; the journal's identity is, before it is used."""
        state = read_state(self.run_folder)
        return state if state is not None else self._write(Carried(uuid.uuid4().hex))

    def _note(self, **changes: Any) -> None:
        self._write(replace(self._state(), **changes))

    def _write(self, state: Carried) -> Carried:
        write_durably(self.run_folder / STATE, json.dumps(asdict(state)))
        return state

    def _connected(self) -> MlflowClient:
        if self._client is None:
            client = make_client(self.tracking_uri)
            self._experiment_id = ensure_experiment(client, self.tracking_uri)
            self._client = client
        return self._client

    def _run_id(self, path: str) -> str:
        """MLflow's id of the run at `path` (`` is the root), made with its parents if it is not there."""
        known = self._state().runs
        if path in known:
            return known[path]
        journal = self._state().journal
        found = self._search(f"tags.`{JOURNAL_TAG}` = '{journal}' and tags.`{PATH_TAG}` = '{quoted(path)}'")
        run_id = found[0].info.run_id if found else self._create(path)
        self._note(runs={**self._state().runs, path: run_id})
        return run_id

    def _search(self, condition: str) -> list[Any]:
        client = self._connected()
        found, token = [], None
        while True:
            page = client.search_runs([self._experiment_id], condition, max_results=1000, page_token=token)
            found += page
            token = page.token
            if not token:
                return found

    def _create(self, path: str) -> str:
        tags = {RUN_TAG: self.tags[RUN_TAG], JOURNAL_TAG: self._state().journal, PATH_TAG: path}
        name = path or self.run_name
        if path:
            tags["mlflow.parentRunId"] = self._run_id(path.rpartition("/")[0])
        else:
            tags |= self.tags
        return self._connected().create_run(self._experiment_id, tags=tags, run_name=name).info.run_id

    def _reopen(self) -> None:
        """A run that was told to have ended goes on, and so does what ended with it."""
        if self._state().closed is not None:
            for path in {"", *self._state().ended}:
                self._connected().update_run(self._run_id(path), status="RUNNING")
            self._note(closed=None, ended=())

    def _send(self, lines: list[dict[str, Any]]) -> None:
        """Sends the lines in order, those of one run together."""
        self._reopen()
        for path, group in groupby(lines, key=lambda line: line.get("run") or ""):
            records = list(group)
            self._log_batch(path, records)
            for record in records:
                if record["kind"] == "artifact":
                    self._connected().log_artifact(self._run_id(path), record["path"], record.get("folder"))
                elif record["kind"] == "status":
                    given = str(record.get("status", "done"))
                    self._connected().set_terminated(self._run_id(path), STATUSES.get(given.lower(), given.upper()))

    def _log_batch(self, path: str, records: list[dict[str, Any]]) -> None:
        """One call for many lines; if MLflow refuses it as invalid, each value alone, the refused ones counted."""
        from mlflow.entities import Metric, Param, RunTag

        metrics = [
            Metric(name, value, record["time_ms"], int(record.get("step") or 0))
            for record in records
            if record["kind"] == "metrics"
            for name, value in numbers(payload(record))
        ]
        params = [Param(name, str(value)[:LONGEST_VALUE]) for name, value in items_of(records, "params")]
        tags = [RunTag(name, str(value)[:LONGEST_VALUE]) for name, value in items_of(records, "tags")]
        if metrics or params or tags:
            run_id = self._run_id(path)
            for part in parts(metrics, params, tags):
                self._log(run_id, *part)

    def _log(self, run_id: str, metrics: list, params: list, tags: list) -> None:
        from mlflow.exceptions import MlflowException

        try:
            self._connected().log_batch(run_id, metrics, params, tags)
        except MlflowException as error:
            if error.error_code not in ("INVALID_PARAMETER_VALUE", "BAD_REQUEST"):
                raise
            if len(metrics) + len(params) + len(tags) == 1:
                # A parameter that has another value already, or a name MLflow does not take: it never will.
                self._note(rejected=self.rejected + 1)
                return
            for item in metrics:
                self._log(run_id, [item], [], [])
            for item in params:
                self._log(run_id, [], [item], [])
            for item in tags:
                self._log(run_id, [], [], [item])


def read_state(run_folder: Path) -> Carried | None:
    """How far the journal in that folder was carried; None if nobody has begun."""
    path = run_folder / STATE
    return Carried(**json.loads(path.read_text())) if path.exists() else None


def unsent_bytes(run_folder: Path) -> int:
    """Bytes of the journal in that folder that MLflow has not taken yet."""
    journal, state = run_folder / JOURNAL, read_state(run_folder)
    return (journal.stat().st_size if journal.exists() else 0) - (state.bytes if state else 0)


def read_from(journal: Path, offset: int) -> tuple[list[dict[str, Any]], int]:
    """Whole lines behind `offset`, at most about BATCH_BYTES of them, and the offset behind the last."""
    if not journal.exists():
        return [], offset
    with journal.open("rb") as handle:
        handle.seek(offset)
        block = handle.read(BATCH_BYTES)
        block += handle.readline() if len(block) == BATCH_BYTES else b""
    whole, newline, _ = block.rpartition(b"\n")
    return parse_lines(whole + newline), offset + len(whole) + len(newline)


def payload(record: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a line: under its kind (`metrics={...}`), under `values`, or beside the envelope."""
    for key in (record["kind"], "values"):
        if isinstance(record.get(key), Mapping):
            return dict(record[key])
    return {key: value for key, value in record.items() if key not in ENVELOPE}


def items_of(records: Iterable[Mapping[str, Any]], kind: str) -> list[tuple[str, Any]]:
    """Flattened (name, value) of all lines of a kind; a later value of the same name wins."""
    found = {name: value for record in records if record["kind"] == kind for name, value in flat(payload(record))}
    return list(found.items())


def flat(values: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    """Nested values by dotted name."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def numbers(values: Mapping[str, Any]) -> Iterable[tuple[str, float]]:
    """The numeric ones of nested values, by dotted name."""
    return ((name, float(value)) for name, value in flat(values) if isinstance(value, int | float))


def parts(metrics: list, params: list, tags: list) -> Iterable[tuple[list, list, list]]:
    """The three lists cut to what one log_batch call takes (1000 items in all)."""
    room = MOST_METRICS - MOST_PARAMS - MOST_TAGS
    rounds = max(-(-len(metrics) // room), -(-len(params) // MOST_PARAMS), -(-len(tags) // MOST_TAGS))
    for index in range(rounds):
        yield (
            metrics[index * room : (index + 1) * room],
            params[index * MOST_PARAMS : (index + 1) * MOST_PARAMS],
            tags[index * MOST_TAGS : (index + 1) * MOST_TAGS],
        )


def quoted(path: str) -> str:
    """A path inside single quotes of MLflow's filter language; ours are names and numbers with slashes."""
    if "'" in path:
        raise ValueError(f"{path!r} is no path of a run")
    return path
