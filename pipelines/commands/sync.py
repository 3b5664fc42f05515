"""`penstock sync [RUN]`: sends MLflow what waits in the journals of ended runs, and how they ended."""

from __future__ import annotations

import argparse
import json
from typing import Any

from components.errors import BusyError, PenstockError, UnavailableError
from components.tracking.client import shown_uri
from components.tracking.sync import read_state, unsent_bytes
from pipelines.run import tracking_uri
from pipelines.run_folder import RunFolder, find_run, list_runs, penstock_home
from pipelines.tracking import is_carried, send_ended


def command(options: argparse.Namespace) -> int:
    home = penstock_home()
    # A password in MLFLOW_TRACKING_URI goes to where MLflow's client looks for it; runs do not hold it.
    tracking_uri(home)
    if options.run:
        folders = [find_run(home, options.run)]
        if folders[0].status() == "running":
            raise BusyError(f"{folders[0].run_id} is running; its own command sends its metrics.")
    else:
        folders = [folder for folder in list_runs(home) if folder.status() != "running"]
    rows, failures = [], []
    for folder in folders:
        if is_carried(folder):
            continue
        waiting = unsent_bytes(folder.path)
        try:
            send_ended(folder)
            rows.append(describe(folder, waiting))
            if not options.json:
                print(f"{folder.run_id}: {waiting / 1000:.1f} kB sent, {rows[-1]['status']}")
        except PenstockError as error:
            failures.append(explain(folder, waiting, error))
    if failures:
        raise UnavailableError(" ".join(failures))
    if options.json:
        print(json.dumps({"status": "done", "runs": rows}))
    elif not rows:
        print("nothing waits for MLflow")
    return 0


def describe(folder: RunFolder, sent_bytes: int) -> dict[str, Any]:
    state = read_state(folder.path)
    assert state is not None
    return {
        "run_id": folder.run_id,
        "sent_bytes": sent_bytes,
        "rejected_values": state.rejected,
        "status": state.closed,
    }


def explain(folder: RunFolder, waiting_bytes: int, error: PenstockError) -> str:
    """One sentence: what waits, for what, and why it was not sent."""
    if isinstance(error, BusyError):
        return error.message
    reason = error.message.partition("(")[2].rpartition(")")[0] or error.message
    place = shown_uri(folder.facts().tracking_uri)
    return (
        f"{waiting_bytes / 1000:.1f} kB of {folder.run_id} wait: MLflow at {place} does not answer ({reason}); "
        "run `penstock sync` again when it does."
    )
