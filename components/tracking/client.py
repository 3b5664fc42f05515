"""One way to MLflow's client: telemetry off, short timeouts, no pickled models, experiments with a known place.

A new sqlite database costs MLflow several seconds of migrations, so the installation makes an empty one to copy:

    python -m components.tracking.client
"""

from __future__ import annotations

import http.client
import os
import shutil
import sys
import tempfile
import urllib.error
import urllib.request
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from components.errors import PenstockError, UnavailableError

if TYPE_CHECKING:
    from mlflow import MlflowClient

EXPERIMENT = "penstock"
CHECK_TIMEOUT_S = 5.0
SQLITE = "sqlite:///"

# A server that hangs may hold the journal's carrier for this long, never a stage. What a user set wins.
DEFAULTS = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "10", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1"}
ENFORCED = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}


VARIABLE = "MLFLOW_TRACKING_URI"


def make_client(tracking_uri: str) -> MlflowClient:
    """A client of the server or database at `tracking_uri`; the first use of a new database takes seconds."""
    os.environ.update(ENFORCED)
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)
    if tracking_uri.startswith(SQLITE):
        place_database(sqlite_path(tracking_uri))
    import logging

    import mlflow
    from mlflow import MlflowClient

    logging.getLogger("mlflow").setLevel(logging.WARNING)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    # MLflow's stores look at the process's default in places, whatever client called them. It also goes into the
    # environment, where it would be taken for the user's choice by the next run of this process.
    chosen = os.environ.get(VARIABLE)
    mlflow.set_tracking_uri(tracking_uri)
    mlflow.set_registry_uri(tracking_uri)
    os.environ.pop(VARIABLE, None)
    if chosen is not None:
        os.environ[VARIABLE] = chosen
    return MlflowClient(tracking_uri, tracking_uri)


def template_path() -> Path:
    """The empty database that the installation makes, for this release of MLflow."""
    return Path(sys.prefix) / "share" / "penstock" / f"mlflow-{version('mlflow')}.db"


def place_database(path: Path) -> None:
    """Puts a copy of the template where there is no database yet; without a template MLflow makes its own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() or not template_path().is_file():
        return
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    shutil.copyfile(template_path(), partial)
    # A link never replaces what another process put there in between.
    with suppress(FileExistsError):
        os.link(partial, path)
    partial.unlink()


def build_template() -> Path:
    """Makes the template; called by `make install`."""
    target = template_path()
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        made = Path(folder) / "mlflow.db"
        make_client(f"{SQLITE}{made}").search_experiments()
        made.rename(target)
    return target


def ensure_experiment(client: MlflowClient, tracking_uri: str) -> str:
    """Id of our experiment. Beside a database its artifacts lie in `mlflow-artifacts`; a server has its own place."""
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(EXPERIMENT)
    if found is not None:
        return found.experiment_id
    place = sqlite_path(tracking_uri).parent / "mlflow-artifacts" if tracking_uri.startswith(SQLITE) else None
    try:
        return client.create_experiment(EXPERIMENT, place.as_uri() if place else None)
    except MlflowException:
        # Another process made it between the two calls; anything else is raised by the second look.
        found = client.get_experiment_by_name(EXPERIMENT)
        if found is None:
            raise
        return found.experiment_id


def sqlite_path(tracking_uri: str) -> Path:
    """The database's file; the path behind `sqlite:///` is relative unless it has a fourth slash."""
    return Path(tracking_uri.removeprefix(SQLITE)).absolute()


def check_tracking(uri: str) -> PenstockError | None:
    """Why MLflow cannot be used, or None; at most 5 s, and without importing it."""
    if uri.startswith(SQLITE):
        return _check_sqlite(sqlite_path(uri))
    if uri.startswith(("http://", "https://")):
        return _check_server(uri)
    return UnavailableError(
        f"MLFLOW_TRACKING_URI is {shown_uri(uri)!r}; it must begin with sqlite:///, http:// or https://."
    )


def _check_sqlite(path: Path) -> PenstockError | None:
    folder = next(parent for parent in path.parents if parent.exists())
    blocked = path if path.exists() and not os.access(path, os.W_OK) else folder
    if path.is_dir() or not folder.is_dir() or not os.access(blocked, os.W_OK):
        return UnavailableError(f"MLflow's database {path} cannot be written; choose another PENSTOCK_HOME.")
    return None


def _check_server(uri: str) -> PenstockError | None:
    reason = silence(uri)
    if reason is None:
        return None
    return UnavailableError(
        f"MLflow at {shown_uri(uri)} does not answer ({reason}); start it, unset MLFLOW_TRACKING_URI, "
        "or run with --offline."
    )


def silence(uri: str) -> object | None:
    """Why the server at `uri` gives no sign of life within 5 s; None if it does."""
    try:
        with urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=CHECK_TIMEOUT_S) as answer:
            return None if answer.status == 200 else f"status {answer.status}"
    except urllib.error.HTTPError as error:
        return f"status {error.code}"
    except (urllib.error.URLError, http.client.HTTPException, OSError, ValueError) as error:
        return getattr(error, "reason", error)


def split_credentials(uri: str) -> tuple[str, dict[str, str]]:
    """The URI without a user name and password, and the variables in which MLflow's client looks for them."""
    parts = urlsplit(uri)
    if "@" not in parts.netloc:
        return uri, {}
    user, password = unquote(parts.username or ""), unquote(parts.password or "")
    return shown_uri(uri), {"MLFLOW_TRACKING_USERNAME": user, "MLFLOW_TRACKING_PASSWORD": password}


def shown_uri(uri: str) -> str:
    """The URI without a user name and password."""
    parts = urlsplit(uri)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl() if "@" in parts.netloc else uri


if __name__ == "__main__":
    print(build_template())
