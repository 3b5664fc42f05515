"""The `deploy` stage: serves the registered model and makes it champion once the endpoint answers with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict

from components.artifacts import Artifact, Ref, open_artifact, write_artifact
from components.config import Config
from components.context import Context
from components.errors import StageError
from components.serve.config import DeployConfig
from components.serve.deploy import deploy_model
from components.serve.replica import open_servable
from components.tracking.names import checked_name


class StageConfig(Config):
    """What the stage reads."""

    name: str
    deploy: DeployConfig = DeployConfig()
    tracking_uri: str = ""


def run(config: StageConfig, inputs: Mapping[str, Ref], output: str, context: Context) -> Artifact:
    """Deploys `model` as the version that `registration` names.

    Raises:
        StageError: If the registration is of another model, or the endpoint does not come up.
        BusyError: If the port is in use.
    """
    from components.tracking.registry import promote

    name = checked_name(config.name)
    model = open_servable(inputs["model"])
    registered = open_artifact(inputs["registration"], kind="registration").read_json("registration.json")
    if registered["digest"] != model.digest:
        raise StageError(f"{name} version {registered['version']} is another model than the one to deploy; run again.")
    context.event("progress", step=0, total=2)
    endpoint = deploy_model(model, name, registered["version"], config.deploy, context.home)
    context.event("progress", step=1, total=2)
    promote(name, registered["version"], config.tracking_uri or context.tracking_uri)
    context.track("tags", tags={"penstock.endpoint": endpoint.url})
    context.event("note", text=f"{name} version {endpoint.version} answers at {endpoint.url}")
    with write_artifact(output, "deployment", inputs, context) as draft:
        draft.write_json("deployment.json", asdict(endpoint))
        draft.metadata = {"url": endpoint.url, "name": name, "version": endpoint.version, "digest": endpoint.digest}
    assert draft.artifact is not None
    return draft.artifact
