"""The MLflow registry: a model is a bundle of our own files (no flavour, no pickle), a version carries its lineage.

Whoever takes a model out compares every file with the artifact's manifest, and the manifest's digest with the one that
the version was registered with: MLflow itself hands out altered files without a word.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar
from urllib.parse import unquote, urlsplit

from components.artifacts import Artifact, Ref, open_artifact
from components.errors import ArtifactError, PenstockError, StageError, as_disk_full
from components.tracking.client import SQLITE, ensure_experiment, make_client, sqlite_path
from components.tracking.names import checked_name

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

CHALLENGER, CHAMPION = "challenger", "champion"
DIGEST_TAG, RUN_TAG = "penstock.model_digest", "penstock.run_id"
P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True)
class Registered:
    """A version in the registry."""

    name: str
    version: str
    digest: str
    run_id: str


def said_plainly(action: Callable[P, R]) -> Callable[P, R]:
    """Turns what MLflow, its HTTP client or its database raise into one sentence that says how to go on."""

    @wraps(action)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return action(*args, **kwargs)
        except PenstockError:
            raise
        except Exception as error:
            if (full := as_disk_full(error, "below the MLflow store")) is not None:
                raise full from error
            reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
            raise StageError(
                f"The MLflow registry does not answer ({reason}); make it reachable and run the same command again: "
                "finished stages are kept."
            ) from error

    return wrapped


@said_plainly
def register_model(
    artifact: Artifact, name: str, tags: Mapping[str, str], tracking_uri: str, alias: str = CHALLENGER
) -> Registered:
    """Registers a verified model once: the same model of the same run gives the version that is already there.

    Args:
        artifact: The model.
        tags: Lineage; must hold `penstock.run_id`.
        alias: Moved to the version.
    """
    checked_name(name)
    client = make_client(tracking_uri)
    tags = {**tags, DIGEST_TAG: artifact.digest}
    ensure_registered_name(client, name)
    found = find_version(client, name, artifact.digest, tags[RUN_TAG])
    version = found or create_version(client, artifact, name, tags, tracking_uri)
    client.set_registered_model_alias(name, alias, version.version)
    return Registered(name, str(version.version), artifact.digest, tags[RUN_TAG])


def ensure_registered_name(client: MlflowClient, name: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def find_version(client: MlflowClient, name: str, digest: str, run_id: str) -> ModelVersion | None:
    """The version of that model by that run, or None."""
    condition = f"name = '{name}' and tags.`{DIGEST_TAG}` = '{digest}'"
    found = client.search_model_versions(condition)
    return next((version for version in found if version.tags.get(RUN_TAG) == run_id), None)


def create_version(
    client: MlflowClient, artifact: Artifact, name: str, tags: Mapping[str, str], tracking_uri: str
) -> ModelVersion:
    """Uploads the files and makes the version last, so that a version always has all of them."""
    experiment_id = ensure_experiment(client, tracking_uri)
    model = client.create_logged_model(experiment_id, name=name, tags=dict(tags), model_type="penstock")
    client.log_model_artifacts(model.model_id, str(artifact.path))
    client.finalize_logged_model(model.model_id, "READY")
    source = f"models:/{model.model_id}"
    return client.create_model_version(name, source=source, tags=dict(tags), model_id=model.model_id)


@said_plainly
def promote(name: str, version: str, tracking_uri: str) -> None:
    """Makes a version the champion. Called when the endpoint answers with it."""
    checked_name(name)
    make_client(tracking_uri).set_registered_model_alias(name, CHAMPION, version)


@said_plainly
def get_champion(name: str, tracking_uri: str) -> dict[str, str] | None:
    """The champion of that name as {"version", "digest", "uri"}, verified; None when there is none.

    Raises:
        ArtifactError: If its files were altered since it was registered.
    """
    checked_name(name)
    if tracking_uri.startswith(SQLITE) and not sqlite_path(tracking_uri).exists():
        return None  # The first run of a home: nothing to ask, and no seconds spent on importing MLflow.
    version = find_alias(make_client(tracking_uri), name, CHAMPION)
    if version is None:
        return None
    artifact = open_version(version, tracking_uri, cache_folder(tracking_uri))
    return {"version": str(version.version), "digest": artifact.digest, "uri": artifact.uri}


@said_plainly
def champion_tags(name: str, tracking_uri: str) -> tuple[str, str] | None:
    """Version and digest of the champion of that name as the registry tells them, its files unread; None without."""
    version = find_alias(make_client(tracking_uri), checked_name(name), CHAMPION)
    return (str(version.version), version.tags.get(DIGEST_TAG, "")) if version is not None else None


@said_plainly
def fetch_model(name: str, version_or_alias: str, tracking_uri: str, cache: Path | None = None) -> tuple[Artifact, str]:
    """A registered model, verified, and its version.

    Args:
        version_or_alias: `3`, `champion` or `challenger`.
        cache: Where a server's files are kept; beside a database they are used where they lie.

    Raises:
        ArtifactError: If there is no such version, or its files were altered since it was registered.
    """
    checked_name(name)
    client = make_client(tracking_uri)
    find = find_number if version_or_alias.isdecimal() else find_alias
    version = find(client, name, version_or_alias)
    if version is None:
        raise ArtifactError(f"The registry holds no {name} {version_or_alias}; `penstock runs` shows what there is.")
    return open_version(version, tracking_uri, cache or cache_folder(tracking_uri)), str(version.version)


def find_alias(client: MlflowClient, name: str, alias: str) -> ModelVersion | None:
    return _or_none(lambda: client.get_model_version_by_alias(name, alias))


def find_number(client: MlflowClient, name: str, version: str) -> ModelVersion | None:
    return _or_none(lambda: client.get_model_version(name, version))


def _or_none(ask: Callable[[], ModelVersion]) -> ModelVersion | None:
    """What `ask` finds, or None where MLflow says that there is no such model, version or alias."""
    from mlflow.exceptions import MlflowException

    try:
        return ask()
    except MlflowException as error:
        # An alias that does not exist is reported as an invalid parameter.
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise


def cache_folder(tracking_uri: str) -> Path:
    """Where models of a server are kept: under the home of this command."""
    return Path(os.environ.get("PENSTOCK_HOME", ".penstock")).absolute() / "cache" / "registry"


def open_version(version: ModelVersion, tracking_uri: str, cache: Path) -> Artifact:
    """The files of a version, compared with the manifest and with the digest it was registered with.

    Raises:
        ArtifactError: If a file is absent, altered, a folder or a link, or the version is not one of ours.
    """
    digest = version.tags.get(DIGEST_TAG)
    if not digest:
        raise ArtifactError(f"{version.name} version {version.version} was not registered by Penstock.")
    local = local_folder(make_client(tracking_uri).get_model_version_download_uri(version.name, version.version))
    if local is not None:
        refuse_links(local)
        return open_artifact(Ref(str(local), digest), kind="model")
    return open_download(version, tracking_uri, digest, cache / digest)


def refuse_links(folder: Path) -> None:
    """Raises ArtifactError if the folder or anything in it, the manifest included, is a symbolic link."""
    for path in (folder, *folder.rglob("*")):
        if path.is_symlink():
            raise ArtifactError(f"{path} is a symbolic link; a registered model holds regular files only.")


def local_folder(place: str) -> Path | None:
    """The folder that an artifact location names on this machine; None for a server's or an object store's."""
    parts = urlsplit(place)
    if parts.scheme in ("", "file") and parts.netloc in ("", "localhost"):
        return Path(unquote(parts.path))
    return None


def open_download(version: Any, tracking_uri: str, digest: str, target: Path) -> Artifact:
    """The verified copy at `target`, fetched if it is not there or no longer whole."""
    try:
        return open_artifact(Ref(str(target), digest), kind="model")
    except ArtifactError:
        shutil.rmtree(target, ignore_errors=True)
    import mlflow.artifacts

    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        source = f"models:/{version.name}/{version.version}"
        fetched = mlflow.artifacts.download_artifacts(source, dst_path=folder, tracking_uri=tracking_uri)
        open_artifact(Ref(fetched, digest), kind="model")
        Path(fetched).rename(target)
    return open_artifact(Ref(str(target), digest), kind="model")
