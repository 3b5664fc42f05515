"""What is looked at before a run starts anything: the spec, the data, and the services it will need."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.errors import PenstockError, SpecError
from components.tasks import get_task
from components.tasks.tokenizers import BUILT
from components.train.session import SEQ_LEN
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

    spec = loaded.spec
    seq_len = (spec.train.seq_len or SEQ_LEN) if get_task(spec.task).packed else None
    errors = check_source(spec.task, spec.data, seq_len=seq_len)
    errors += weight_errors(spec, seq_len, tokens=not errors)
    if errors:
        raise SpecErrors(errors)


def weight_errors(spec: Spec, seq_len: int | None, tokens: bool) -> list[SpecError]:
    """Why the weights that `model.pretrained` names do not fit the architecture or, if `tokens`, the tokenizer."""
    from components.models.pretrained import check_pretrained, check_tokenizer

    if spec.model.pretrained is None:
        return []
    task = get_task(spec.task)
    longest = seq_len or (spec.data.text.max_length if task.modality == "text" else None)
    error = check_pretrained(spec.model, longest)
    if error is None and tokens and task.generative and spec.data.text.tokenizer not in BUILT:
        error = check_tokenizer(spec.model, spec.data.text.tokenizer)
    return [] if error is None else [error]


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
    """Refuses a training that cannot fit this machine, or its disk; what another cluster has is not known here.

    Raises:
        SpecError: What is needed, what is there, and what to change.
    """
    if os.environ.get("RAY_ADDRESS"):
        return
    from pipelines.plan import memory_error, nvme_error

    raise_if(memory_error(loaded.spec))
    raise_if(nvme_error(loaded.spec))


def check_services(folder: RunFolder, options: RunOptions) -> None:
    """Checks the endpoint's port and MLflow, without importing it.

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
    if not options.offline:
        from components.tracking.client import check_tracking

        raise_if(check_tracking(facts.tracking_uri))


def raise_if(error: PenstockError | None) -> None:
    if error is not None:
        raise error


def reigning_champion(folder: RunFolder) -> dict[str, str] | None:
    """The champion of this run's model name as {"uri", "digest"}; None without one, or where nothing is registered."""
    from components.tracking.registry import get_champion

    facts = folder.facts()
    spec = Spec.model_validate_json((folder.path / "spec.json").read_text())
    if spec.registry is None:
        return None
    champion = get_champion(spec.model_name, facts.tracking_uri)
    return {"uri": champion["uri"], "digest": champion["digest"]} if champion else None
