"""What a user may call a model: a folder, a run, or a name in the registry."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components.artifacts import Ref
from components.artifacts.manifest import MANIFEST_NAME
from components.errors import ArtifactError, RequestError, SpecError
from pipelines.run import tracking_uri
from pipelines.run_folder import list_runs, penstock_home

REGISTERED = re.compile(r"([A-Za-z0-9][A-Za-z0-9_-]*)(?:@([A-Za-z0-9_-]+)|/([0-9]+))?")


@dataclass(frozen=True)
class ModelSource:
    """A model that was found.

    Attributes:
        ref: Where it lies; a bare URI when no digest is known.
        name: What to call it on an endpoint.
        version: Its version in the registry, or `local`.
    """

    ref: Ref | str
    name: str
    version: str

    @property
    def uri(self) -> str:
        return self.ref if isinstance(self.ref, str) else self.ref.uri


def find_model(source: str) -> ModelSource:
    """Finds the model that `source` names: a folder (or s3://), a run, NAME, NAME@ALIAS or NAME/VERSION.

    Raises:
        SpecError: If it names none; says what was tried.
    """
    if source.startswith("s3://"):
        return ModelSource(source, "model", "local")
    if (Path(source) / MANIFEST_NAME).exists():
        return ModelSource(str(Path(source).absolute()), "model", "local")
    home = penstock_home()
    for folder in list_runs(home):
        if folder.run_id == source:
            return _model_of_run(source, folder.read_json("result.json"))
    match = REGISTERED.fullmatch(source)
    if match is None or Path(source).exists():
        raise SpecError(
            f"{source!r} is no model; give a model folder (with {MANIFEST_NAME}), a run, NAME or NAME@ALIAS."
        )
    return _registered_model(match, home)


def _model_of_run(run_id: str, result: dict[str, Any] | None) -> ModelSource:
    model = (result or {}).get("compressed") or (result or {}).get("model")
    if model is None:
        raise SpecError(f"The run {run_id} has made no model yet; finish it with `penstock run`.")
    registered = (result or {}).get("registered") or {}
    name = registered.get("name") or run_id.rpartition("-")[0] or run_id
    return ModelSource(Ref(model["uri"], model["digest"]), name, str(registered.get("version") or run_id))


def _registered_model(match: re.Match[str], home: Path) -> ModelSource:
    from components.tracking.registry import CHAMPION, fetch_model

    name, alias, version = match.groups()
    artifact, number = fetch_model(name, version or alias or CHAMPION, tracking_uri(home))
    return ModelSource(artifact.ref, name, number)


def predict_with(
    target: str, inputs: Sequence[Any], files: Sequence[Path], options: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Asks the endpoint at the URL `target`, or predicts with the model that it names, in this process.

    Args:
        options: How a model that writes texts does it, by the names of `Sampling`.
    """
    from components.serve.client import predict, predict_local

    if target.startswith(("http://", "https://")):
        for name in options or {}:
            raise RequestError(
                f"{name} is for a model that writes texts, which no endpoint serves in this version.", name
            )
        return predict(target, inputs, files)
    source = find_model(target)
    try:
        answer = predict_local(source.ref, inputs, files, source.version, options)
    except ArtifactError as error:
        raise ArtifactError(f"{target} cannot be used: {error.message}") from error
    answer["model"]["name"] = source.name
    return answer
