"""What is looked at before a run starts anything: the spec, the data, and the services it will need."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.errors import PenstockError
from pipelines.spec import LoadedSpec, Spec, load_spec
from pipelines.spec_errors import SpecErrors

if TYPE_CHECKING:
    from pipelines.run import RunOptions
    from pipelines.run_folder import RunFolder


def load_and_check(source: str | Path | Mapping[str, Any], overrides: Mapping[str, Any] | None = None) -> LoadedSpec:
    """A spec whose data source holds what it says.

    Raises:
        SpecErrors: Everything that is wrong, at once.
    """
    loaded = load_spec(source, overrides)
    check_data(loaded)
    check_machine(loaded)
    check_memory(loaded)
    return loaded


def check_data(loaded: LoadedSpec) -> None:
    """Looks into the data as far as a few seconds allow.

    Raises:
        SpecErrors: Everything that is wrong with it, at once.
    """
    from components.data.preflight import check_source

    errors = check_source(loaded.spec.task, loaded.spec.data)
    if errors:
        raise SpecErrors(errors)


def check_machine(loaded: LoadedSpec) -> None:
    """Refuses a training for which this machine lacks something; what another cluster has is not known here.

    Raises:
        SpecErrors: Everything that is lacking, at once.
    """
    from components.train.preflight import check_machine as lacking

    if os.environ.get("RAY_ADDRESS"):
        return
    errors = lacking(loaded.spec.train)
    if errors:
        raise SpecErrors(errors)


def check_memory(loaded: LoadedSpec) -> None:
    """Refuses a training that cannot fit this machine; what another cluster has is not known here.

    Raises:
        SpecError: What is needed, what is there, and what to change.
    """
    if os.environ.get("RAY_ADDRESS"):
        return
    from pipelines.plan import memory_error

    raise_if(memory_error(loaded.spec))


def check_services(folder: RunFolder, options: RunOptions) -> dict[str, str] | None:
    """Checks MLflow and the endpoint's port; returns the reigning champion as {"uri", "digest"}, if any.

    Raises:
        UnavailableError: If MLflow does not answer and the run is not `--offline`.
        BusyError: If the port is taken by something that is not ours.
    """
    facts = folder.facts()
    spec = Spec.model_validate_json((folder.path / "spec.json").read_text())
    home = Path(facts.home)
    if spec.deploy is not None and facts.until in (None, "deploy"):
        from components.serve.deploy import check_port

        check_port(spec.deploy.host, spec.deploy.port, home)
    if options.offline:
        return None
    from components.tracking.client import check_tracking

    raise_if(check_tracking(facts.tracking_uri))
    return reigning_champion(spec, facts.tracking_uri) if spec.registry is not None else None


def raise_if(error: PenstockError | None) -> None:
    if error is not None:
        raise error


def reigning_champion(spec: Spec, tracking_uri: str) -> dict[str, str] | None:
    """The champion of this model's name."""
    from components.tracking.registry import get_champion

    champion = get_champion(spec.model_name, tracking_uri)
    return {"uri": champion["uri"], "digest": champion["digest"]} if champion else None
