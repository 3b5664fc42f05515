"""Finished runs of an MLflow experiment, as plain values."""

from __future__ import annotations

from typing import Any

from components.errors import PenstockError, SpecError, UnavailableError, first_line
from components.tracking.client import SQLITE, make_client, shown_uri, silence

MOST_RUNS = 5000
PAGE = 1000


def read_past_runs(tracking_uri: str, experiment: str) -> list[dict[str, Any]]:
    """Name, parameters and last metrics of every finished run, oldest first.

    Raises:
        SpecError: If there is no experiment of that name.
        UnavailableError: If MLflow does not answer. That is found out first: its client would try for long.
    """
    reason = None if tracking_uri.startswith(SQLITE) else silence(tracking_uri)
    if reason is not None:
        raise _unavailable(tracking_uri, reason)
    try:
        return _read(tracking_uri, experiment)
    except PenstockError:
        raise
    except Exception as error:
        raise _unavailable(tracking_uri, first_line(error)) from error


def _unavailable(tracking_uri: str, reason: object) -> UnavailableError:
    return UnavailableError(
        f"tune.mlflow takes past runs from MLflow at {shown_uri(tracking_uri)}, which does not answer ({reason}); "
        "start it, or leave tune.mlflow out.",
        "tune.mlflow",
    )


def _read(tracking_uri: str, experiment: str) -> list[dict[str, Any]]:
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
