"""Carries a run's journal to MLflow beside the run, so that tracking never slows or stops a stage."""

from __future__ import annotations

import threading
import traceback

from pipelines.run_folder import RunFolder

POLL_S = 2.0
STOP_WAIT_S = 30.0


class TrackingThread:
    """Syncs every few seconds, and once more at the end; what MLflow did not take stays in the journal."""

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder
        self._status = "stopped"
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="tracking", daemon=True)

    def start(self) -> None:
        if not self.folder.facts().offline:
            self._thread.start()

    def stop(self, status: str) -> None:
        """Sends what is left and sets the run's end state: done | failed | stopped."""
        self._status = status
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(STOP_WAIT_S)

    def _loop(self) -> None:
        from components.tracking.sync import MlflowSync

        facts = self.folder.facts()
        tags = {"penstock.spec_sha256": facts.spec_sha256, "penstock.code_version": facts.code_version}
        warned = False
        sync = None
        while True:
            last = self._stop.is_set()
            try:
                sync = sync or MlflowSync(self.folder.path, facts.tracking_uri, facts.run_id, tags)
                if last:
                    sync.finish(self._status)
                else:
                    sync.sync()
            except Exception:  # noqa: BLE001 (a server may fail in any way; the journal keeps all)
                traceback.print_exc()
                if not warned:
                    context = self.folder.context("tracking", self.folder.path)
                    context.warn(f"MLflow at {facts.tracking_uri} does not answer; metrics wait in tracking.jsonl.")
                warned = True
            if last:
                return
            self._stop.wait(POLL_S)
