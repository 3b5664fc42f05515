"""The `register` stage: puts the model that passed the gate into the MLflow registry as the challenger."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from components.artifacts import Artifact, Ref, open_artifact, write_artifact
from components.config import Config
from components.context import Context
from components.errors import StageError
from components.tracking.client import shown_uri
from components.tracking.names import checked_name

AGAINST_CHAMPION = "newcomer-vs-champion"
"""Name of the gate's second comparison (`components.evaluate.gate`): who fails only there becomes a challenger."""


class StageConfig(Config):
    """What the stage reads."""

    name: str


def run(config: StageConfig, inputs: Mapping[str, Ref], output: str, context: Context) -> Artifact:
    """Registers `model` with its lineage.

    Raises:
        StageError: If the gate refused the model or compared it with another champion than the one of now, or the
            registry does not answer (nothing is lost: run again).
    """
    from components.tracking.registry import CHALLENGER, register_model

    name = checked_name(config.name)
    if context.offline:
        raise StageError(
            "A model is registered in MLflow, which --offline leaves out; run the same command without --offline: "
            "finished stages are kept."
        )
    model = open_artifact(inputs["model"], kind="model")
    evaluation = open_artifact(inputs["evaluation"], kind="evaluation")
    gate = checked_gate(evaluation)
    refuse_other_champion(name, model, evaluation, context)
    registered = register_model(model, name, lineage(model, evaluation, gate, context), context.tracking_uri)
    context.track("tags", tags={"penstock.registered": f"{name}/{registered.version}"})
    values = {
        "name": name,
        "version": registered.version,
        "alias": CHALLENGER,
        "digest": registered.digest,
        "tracking_uri": shown_uri(context.tracking_uri),
    }
    with write_artifact(output, "registration", inputs, context) as draft:
        draft.write_json("registration.json", values)
        draft.metadata = values
    assert draft.artifact is not None
    return draft.artifact


def checked_gate(evaluation: Artifact) -> Mapping[str, Any]:
    """The gate's verdict, if it lets the model into the registry: at most the comparison with the champion failed."""
    gate = evaluation.manifest.metadata.get("gate")
    if gate is None:
        raise StageError("The model was not tested at a gate (there is no test split); it is not registered.")
    failed = {part["name"] for part in gate["parts"] if not part["passed"]}
    if not gate["passed"] and failed != {AGAINST_CHAMPION}:
        raise StageError("The gate refused this model; it is not registered.")
    return gate


def refuse_other_champion(name: str, model: Artifact, evaluation: Artifact, context: Context) -> None:
    """Raises StageError if a champion came up that this model was not compared with: another run was faster."""
    from components.tracking.registry import champion_tags

    reigning = champion_tags(name, context.tracking_uri)
    if reigning is None or reigning[1] in (model.digest, evaluation.manifest.inputs.get("champion")):
        return
    raise StageError(
        f"{name} version {reigning[0]} became champion after this run began, so the gate did not compare the model "
        "with it; run the spec with --fresh."
    )


def lineage(model: Artifact, evaluation: Artifact, gate: Mapping[str, Any], context: Context) -> dict[str, str]:
    """Tags that lead from a version back to the data, the code and the decision it came from."""
    return {
        "penstock.run_id": context.run_id,
        "penstock.spec_sha256": context.spec_sha256,
        "penstock.code_version": context.code_version,
        "penstock.evaluation_digest": evaluation.digest,
        "penstock.dataset_digest": evaluation.manifest.inputs.get("dataset", ""),
        "penstock.model_kind": str(model.manifest.metadata.get("method") or "trained"),
        "penstock.gate": json.dumps(gate, sort_keys=True, default=str)[:4000],
        "penstock.gate_passed": str(bool(gate["passed"])).lower(),
    }
