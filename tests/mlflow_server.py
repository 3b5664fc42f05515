"""A real MLflow server over a database of its own, on a free port; it can be killed, stopped and started again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from components.tracking.client import ENFORCED, place_database
from pipelines.processes import free_port

STARTED_WITHIN_S = 120.0


class MlflowServer:
    """One server, with its workers in a process group of its own.

    Attributes:
        address: Stays the same when it is started again.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        self.address = f"http://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None
        place_database(folder / "mlflow.db")

    def start(self) -> None:
        """Returns when it answers."""
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--workers", "1", "--backend-store-uri", f"sqlite:///{self.folder}/mlflow.db"]
        command += ["--artifacts-destination", str(self.folder / "files")]
        with (self.folder / "server.log").open("a") as log:
            self._process = subprocess.Popen(
                command, env={**os.environ, **ENFORCED}, stdout=log, stderr=log, start_new_session=True
            )
        wait_for_answer(f"{self.address}/health", self._process, self.folder / "server.log")

    def signal(self, number: signal.Signals) -> None:
        """To the server and its workers: SIGSTOP lets it accept connections and never answer, SIGCONT ends that."""
        assert self._process is not None
        os.killpg(self._process.pid, number)

    def kill(self) -> None:
        if self._process is not None:
            self.signal(signal.SIGKILL)
            self._process.wait()
            self._process = None


@contextmanager
def running_server(folder: Path) -> Iterator[MlflowServer]:
    """Yields a server that answers; it and its workers are ended with the block."""
    server = MlflowServer(folder)
    try:
        server.start()
        yield server
    finally:
        server.kill()


@contextmanager
def mlflow_server(folder: Path) -> Iterator[str]:
    """Yields the address of a server that answers."""
    with running_server(folder) as server:
        yield server.address


def wait_for_answer(address: str, server: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + STARTED_WITHIN_S
    while True:
        try:
            with urllib.request.urlopen(address, timeout=5) as answer:
                if answer.status == 200:
                    return
        except OSError:
            assert server.poll() is None, log.read_text()[-2000:]
            assert time.monotonic() < deadline, log.read_text()[-2000:]
            time.sleep(0.2)
