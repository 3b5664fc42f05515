"""The document that `penstock run --json` ends with, put together from what the stages' artifacts say."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from components.artifacts import Artifact, Ref, open_artifact
from components.errors import ArtifactError
from pipelines.cache import walk_artifacts
from pipelines.run_folder import RunFacts, RunFolder
from pipelines.runner import planned
from pipelines.worker import CHAMPION, verdict

RESULT_SCHEMA = 1
TRAINING_FACTS = (
    *("device", "workers", "steps", "seconds", "samples_per_s", "tokens_per_s", "mfu", "peak_tflops", "peak_source"),
    *("data_wait", "skipped_steps", "overflowed_steps", "loss_spikes", "straggler", "restarts"),
)
METRIC_KEYS = ("accuracy", "precision", "recall", "f1", "loss")


def build_result(folder: RunFolder, status: str) -> dict[str, Any]:
    """Every key is always there; null where its stage did not run.

    Args:
        status: done | refused | failed | stopped.

    Raises:
        ArtifactError: If a run that is done has an artifact that is torn or altered.
    """
    facts = folder.facts()
    try:
        artifacts = _open_all(folder, facts)
    except ArtifactError:
        if status in ("done", "refused"):
            raise
        artifacts = {}
    evaluation = artifacts.get("evaluate")
    metrics = evaluation.manifest.metadata.get("metrics", {}) if evaluation else {}
    return {
        "schema": RESULT_SCHEMA,
        "run_id": facts.run_id,
        "status": status,
        "artifact_root": facts.artifact_root,
        "spec_sha256": facts.spec_sha256,
        "code_version": facts.code_version,
        "run_folder": str(folder.path),
        "accepted_changes": [change for one in facts.accepted for change in one["changes"]],
        "stages": stages_of(folder, artifacts, "stopped" if status == "stopped" else "failed"),
        "sweep": _sweep(artifacts.get("tune")),
        "model": _model(artifacts.get("train"), metrics),
        "baseline": _baseline(evaluation, metrics),
        "compressed": _compressed(artifacts.get("compress"), metrics),
        "gate": evaluation.manifest.metadata.get("gate") if evaluation else None,
        "registered": _registered(artifacts.get("register"), "deploy" in artifacts),
        "endpoint": _endpoint(artifacts.get("deploy")),
        "report": None,
    }


def _open_all(folder: RunFolder, facts: RunFacts) -> dict[str, Artifact]:
    """The verified artifacts of the stages that this run finished."""
    refs: Mapping[str, Ref] = walk_artifacts(planned(folder, facts), facts)
    ended = {event["stage"] for event in folder.events() if event["kind"] == "end"}
    # register and deploy write where an earlier run may have written: they count only if this run ended them.
    return {
        name: open_artifact(ref) for name, ref in refs.items() if name not in ("register", "deploy") or name in ended
    }


def stages_of(folder: RunFolder, artifacts: Mapping[str, Artifact], open_status: str) -> dict[str, Any]:
    """How each planned stage ended, with the seconds of its last attempt; `cached` if it did not run in this attempt.

    Args:
        open_status: What became of a stage that began and did not end.
    """
    begun, stages = folder.begun_stages(), {}
    for plan in planned(folder, folder.facts()):
        artifact = artifacts.get(plan.name)
        cached = artifact is not None and plan.name not in begun
        seconds = begun.get(plan.name)
        left_open = plan.name in begun and seconds is None
        status = "done" if artifact else open_status if left_open else "skipped"
        stages[plan.name] = {
            "status": status,
            "seconds": round(seconds or 0.0, 3) if artifact else None,
            "cached": cached,
            "artifact": artifact.uri if artifact else None,
        }
    return stages


def _sweep(artifact: Artifact | None) -> dict[str, Any] | None:
    if artifact is None:
        return None
    best = artifact.manifest.metadata
    more = {name: best.get(name) for name in ("aims", "pareto", "repeats")}
    return {"trials": best["trials"], "best_config": best["config"], "best_metric": best["metric"], **more}


def _model(artifact: Artifact | None, metrics: Mapping[str, Any]) -> dict[str, Any] | None:
    if artifact is None:
        return None
    facts = artifact.manifest.metadata
    return {
        "uri": artifact.uri,
        "digest": artifact.digest,
        "parameters": facts["parameters"],
        "size_bytes": facts["size_bytes"],
        "metrics": {"validation": facts["metrics"]["validation"], "test": metrics.get("trained")},
        "training": {name: facts.get("facts", {}).get(name) for name in TRAINING_FACTS},
    }


def _baseline(evaluation: Artifact | None, metrics: Mapping[str, Any]) -> dict[str, Any] | None:
    if evaluation is None or not metrics.get("baseline"):
        return None
    named = evaluation.manifest.metadata["baseline"]
    kind = "linear" if "regression" in named else named.partition(" of ")[0]
    return {"kind": kind, "metrics": {"test": metrics["baseline"]}}


def _compressed(artifact: Artifact | None, metrics: Mapping[str, Any]) -> dict[str, Any] | None:
    if artifact is None:
        return None
    facts = artifact.manifest.metadata
    keys = ("passed", "method", "size_bytes", "size_ratio", "latency_ms", "speedup")
    return {
        "uri": f"{artifact.uri}/model",
        "digest": facts["model_digest"],
        **{key: facts[key] for key in keys},
        "metrics": {"test": metrics.get("compressed")},
    }


def _registered(artifact: Artifact | None, deployed: bool) -> dict[str, Any] | None:
    """The version, and what it became: `champion` once its endpoint answers."""
    if artifact is None:
        return None
    record = artifact.read_json("registration.json")
    return {"name": record["name"], "version": record["version"], "alias": CHAMPION if deployed else record["alias"]}


def _endpoint(artifact: Artifact | None) -> dict[str, Any] | None:
    return {"url": artifact.read_json("deployment.json")["url"]} if artifact else None


def gate_status(result: Mapping[str, Any]) -> str:
    """`refused` when a gate was asked and the newcomer did not become champion, or when no compressed model was within
    tolerance and there was no gate to say so; else `done`."""
    gate = result["gate"]
    if gate is None:
        return "refused" if (result["compressed"] or {}).get("passed") is False else "done"
    return "done" if verdict(gate) == CHAMPION else "refused"
