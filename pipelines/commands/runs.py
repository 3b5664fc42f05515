"""`penstock runs`: the runs under PENSTOCK_HOME, and how each ended."""

from __future__ import annotations

import argparse
import json
from typing import Any

from components.tracking.sync import unsent_bytes
from pipelines.run_folder import RunFolder, list_runs, penstock_home


def command(options: argparse.Namespace) -> int:
    rows = [describe(folder) for folder in list_runs(penstock_home())]
    if options.json:
        print(json.dumps({"runs": rows}))
    elif not rows:
        print("No runs here yet; `penstock run digits` makes one.")
    else:
        for row in rows:
            metric = f"accuracy {row['accuracy']:.4f}" if row["accuracy"] is not None else ""
            waits = "metrics wait: penstock sync" if row["unsent_bytes"] and row["status"] != "running" else ""
            print(f"{row['run_id']:40} {row['status']:12} {metric:18} {row['endpoint'] or ''}  {waits}".rstrip())
    return 0


def describe(folder: RunFolder) -> dict[str, Any]:
    """One row: what the run is, how it ended, what it reached."""
    result = folder.read_json("result.json") or {}
    model = result.get("model") or {}
    metrics = model.get("metrics") or {}
    shown = metrics.get("test") or metrics.get("validation") or {}
    return {
        "run_id": folder.run_id,
        "status": folder.status(),
        "accuracy": shown.get("accuracy"),
        "endpoint": (result.get("endpoint") or {}).get("url"),
        "unsent_bytes": unsent_bytes(folder.path),
        "folder": str(folder.path),
    }
