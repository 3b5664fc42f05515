"""Carries the journals of runs to MLflow, each in a process beside its run, so that tracking never slows or stops one.

The process is started by the command as `python -m pipelines.tracking RUN_FOLDER` and outlives it: a pipe between them
tells how the run ended, and the kernel closes it however the command dies. So MLflow hears of a killed run too. What
MLflow did not take waits in the journal, for the run's next attempt or `penstock sync`.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from components.errors import BusyError, PenstockError, PreemptedError
from components.tracking.client import check_tracking, shown_uri
from components.tracking.sync import MlflowSync, read_state, unsent_bytes
from pipelines.processes import FileLock
from pipelines.run_folder import RunFolder, list_runs

POLL_S = 2.0
STOP_WAIT_S = 60.0
"""How long a command waits at most for its last metrics to be taken. A server that does not answer is given up much
sooner: a request after 10 s, a look at it after 5 s."""
END_WAIT_S = 30.0
END_PAUSE_S = 1.0
"""How long a run's end is told again to a server that answers but did not take it, and the pause between two tries."""
ORPHAN_WAIT_S = 10.0
"""How long after its command's death a run's end is tried to be told."""
ORPHAN_LIMIT_S = 25.0
"""When a try that hangs is ended: all of a run is gone 30 s after its command."""
NICENESS = 10
"""Where cores are short, training goes first: what is tracked lies in the journal and is not lost."""


class Carrier:
    """The command's side of the process that carries its run's journal."""

    def __init__(self, folder: RunFolder, environment: Mapping[str, str]) -> None:
        self.folder = folder
        with (folder.path / "logs" / "tracking.log").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "pipelines.tracking", str(folder.path)],
                bufsize=0,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env=dict(environment),
            )

    def stop(self, status: str) -> None:
        """Lets the rest be sent and the run's end be told; warns if MLflow did not take it.

        Args:
            status: done | refused | failed | stopped.
        """
        pipe = self._process.stdin
        assert pipe is not None
        with suppress(BrokenPipeError):
            if not pipe.closed:
                pipe.write(status.encode())
                pipe.close()
        try:
            self._process.wait(STOP_WAIT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.returncode != 0:
            waiting_kb = unsent_bytes(self.folder.path) / 1000
            self.folder.context("tracking", self.folder.path).warn(
                f"MLflow did not take the end of this run ({waiting_kb:.1f} kB of metrics wait); "
                f"`penstock sync {self.folder.run_id}` sends it."
            )


class NoCarrier:
    """In place of a Carrier when MLflow is not to be contacted."""

    def stop(self, status: str) -> None:
        """Leaves everything in the journal."""


@contextmanager
def carried(folder: RunFolder, environment: Mapping[str, str]) -> Iterator[Carrier | NoCarrier]:
    """Carries the run's journal during the block; an exception that leaves it ends the run as failed."""
    carrier = NoCarrier() if folder.facts().offline else Carrier(folder, environment)
    try:
        yield carrier
    except BaseException as error:
        carrier.stop("stopped" if isinstance(error, KeyboardInterrupt | PreemptedError) else "failed")
        raise


def make_sync(folder: RunFolder) -> MlflowSync:
    """The carrier of a run's journal."""
    facts = folder.facts()
    tags = {"penstock.spec_sha256": facts.spec_sha256, "penstock.code_version": facts.code_version}
    return MlflowSync(folder.path, facts.tracking_uri, facts.run_id, tags)


def is_carried(folder: RunFolder) -> bool:
    """Whether MLflow knows all of a run, its end included."""
    state = read_state(folder.path)
    return state is not None and state.closed is not None and unsent_bytes(folder.path) == 0


@contextmanager
def only_carrier(folder: RunFolder, wait_s: float | None = None) -> Iterator[None]:
    """Keeps a second process from carrying the same journal: that of a killed command may still be at it.

    Args:
        folder: Of the run.
        wait_s: How long to wait for another one; None as long as one may take to tell its run's end.

    Raises:
        BusyError: If another one does and does not end.
    """
    lock = FileLock(folder.path / "tracking.lock")
    if not lock.acquire(wait_s=STOP_WAIT_S + ORPHAN_WAIT_S if wait_s is None else wait_s):
        raise BusyError(f"Process {lock.holder()} is sending the metrics of {folder.run_id}; wait for it, or end it.")
    try:
        yield
    finally:
        lock.release()


def send_ended(folder: RunFolder, wait_s: float | None = None) -> None:
    """Sends what waits of a run that nobody runs, and tells its end.

    Args:
        folder: Of the run.
        wait_s: How long to wait for another process that is sending it; None as long as that may take.

    Raises:
        UnavailableError: If MLflow does not take it.
        BusyError: If another process is sending it.
    """
    with only_carrier(folder, wait_s):
        raise_if_down(folder)
        status = folder.status()
        if status != "running":  # if it was started meanwhile, its own carrier waits for us and goes on
            make_sync(folder).finish("stopped" if status == "interrupted" else status)


def raise_if_down(folder: RunFolder) -> None:
    """A quick look, so that a server that is known to be down costs 5 s and not a request's timeouts."""
    error = check_tracking(folder.facts().tracking_uri)
    if error is not None:
        raise error


class Told:
    """What the command said through the pipe: nothing yet, how the run ended, or that the command is gone."""

    def __init__(self, descriptor: int) -> None:
        self._status = ""
        self._heard = threading.Event()
        threading.Thread(target=self._listen, args=(descriptor,), daemon=True).start()

    def _listen(self, descriptor: int) -> None:
        self._status = os.read(descriptor, 100).decode()
        self._heard.set()
        if not self._status:
            time.sleep(ORPHAN_LIMIT_S)
            os._exit(1)

    def wait(self, seconds: float) -> str | None:
        """The end's status, `` if the command died without one, or None if the run goes on after that time."""
        return self._status if self._heard.wait(seconds) else None


def carry(folder: RunFolder, told: Told) -> bool:
    """Carries the journal of a live run until it ends; gives whether MLflow has taken all of it."""
    sync, answers, swept = make_sync(folder), True, False
    while (status := told.wait(POLL_S)) is None:
        answers = attempt(folder, sync, "", quick=not answers, tell=answers)
        if answers and not swept:
            swept = True
            send_killed(folder, told)
    if status:
        return finish(folder, sync, status, quick=not answers)
    deadline = time.monotonic() + ORPHAN_WAIT_S
    # The last stages die within a second or so of their command, and may write until then.
    time.sleep(POLL_S)
    while not attempt(folder, sync, "stopped", quick=not answers):
        if time.monotonic() > deadline:
            return False
        answers = False
        time.sleep(POLL_S)
    return True


def finish(folder: RunFolder, sync: MlflowSync, status: str, quick: bool) -> bool:
    """Tells the end of a run, again if a server that answers at all was only too busy; gives whether MLflow took it."""
    deadline = time.monotonic() + END_WAIT_S
    while not attempt(folder, sync, status, quick):
        if time.monotonic() > deadline or check_tracking(folder.facts().tracking_uri) is not None:
            return False
        quick = False
        time.sleep(END_PAUSE_S)
    return True


def attempt(folder: RunFolder, sync: MlflowSync, status: str, quick: bool, tell: bool = False) -> bool:
    """One try to send what is new, and with a status the run's end; gives whether MLflow took it.

    Args:
        quick: Look first whether the server answers at all.
        tell: Warn the user if it does not.
    """
    try:
        if quick:
            raise_if_down(folder)
        if status:
            sync.finish(status)
        else:
            sync.sync()
        return True
    except (PenstockError, OSError):  # or the disk is full: what was sent is not written down
        traceback.print_exc()
        if tell:
            uri = shown_uri(folder.facts().tracking_uri)
            folder.context("tracking", folder.path).warn(
                f"MLflow at {uri} does not answer; metrics wait in tracking.jsonl and are sent when it does."
            )
        return False


def send_killed(folder: RunFolder, told: Told) -> None:
    """Tells the end of the home's runs that were killed together with the process that would have told it.

    The carrier's own run comes first: it waits for no other process, and leaves the rest to others once its run ends.
    """
    facts = folder.facts()
    for other in list_runs(Path(facts.home)):
        theirs = other.facts()
        if theirs.offline or theirs.tracking_uri != facts.tracking_uri or other.status() != "interrupted":
            continue
        if told.wait(0) is not None:
            return
        if other.path != folder.path and not is_carried(other):
            try:
                send_ended(other, wait_s=0)
            except PenstockError:
                traceback.print_exc()


def main() -> int:
    os.nice(NICENESS)
    folder = RunFolder(Path(sys.argv[1]))
    # A request that was lost is sent again two seconds later anyway, after a look at what it has done.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with only_carrier(folder):
        return 0 if carry(folder, Told(sys.stdin.fileno())) else 1


if __name__ == "__main__":
    sys.exit(main())
