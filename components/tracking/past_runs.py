"""Finished runs of an MLflow experiment, as plain values."""

from __future__ import annotations

from typing import Any

from components.errors import SpecError
from components.tracking.client import make_client

MOST_RUNS = 5000
PAGE = 1000


def read_past_runs(tracking_uri: str, experiment: str) -> list[dict[str, Any]]:
    """Name, parameters and last metrics of every finished run, oldest first.

    Raises:
        SpecError: If there is no experiment of that name.
    """
    client = make_client(tracking_uri)
    found = client.get_experiment_by_name(experiment)
    if found is None:
        names = ", ".join(sorted(known.name for known in client.search_experiments())[:10]) or "none"
        raise SpecError(f"MLflow has no experiment {experiment!r}; it has {names}.", "tune.mlflow.experiment")
    runs: list[Any] = []
    token: str | None = None
    while len(runs) < MOST_RUNS:
        page = client.search_runs(
            [found.experiment_id], "attributes.status = 'FINISHED'", max_results=PAGE,
            order_by=["attributes.start_time ASC"], page_token=token,
        )  # fmt: skip
        runs += page
        token = page.token
        if not token:
            break
    return [
        {"name": run.info.run_name, "params": dict(run.data.params), "metrics": dict(run.data.metrics)} for run in runs
    ]
