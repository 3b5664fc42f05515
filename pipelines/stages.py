"""Which stages a spec has, what each reads of it, and what each is handed: the flow, as values.

`graph.py` turns this into the kfp pipeline; `results.py` walks it to find what every stage made.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from components.artifacts import Ref, open_artifact
from pipelines.spec import Spec

ORDER = ("data", "tune", "train", "compress", "evaluate", "register", "deploy")
MODULES = {name: f"components.{'serve' if name == 'deploy' else name}.stage" for name in ORDER}
NOT_CACHED = frozenset({"register", "deploy"})
KINDS = {"data": "dataset", "tune": "sweep", "train": "model", "compress": "compression", "evaluate": "evaluation",
         "register": "registration", "deploy": "deployment"}  # fmt: skip


@dataclass(frozen=True)
class StagePlan:
    """One stage of one run.

    Attributes:
        name: The stage.
        config: Canonical JSON of the fields that the stage reads.
        inputs: Name of the input -> the stage that makes it. `compression/model` is the model inside a compression.
        given: Inputs that are known before the run, by name: the source's content, what earlier
            sweeps tell, the reigning champion.
    """

    name: str
    config: str
    inputs: Mapping[str, str]
    given: Mapping[str, Ref]

    @property
    def cached(self) -> bool:
        return self.name not in NOT_CACHED


def plan_stages(
    spec: Spec,
    source_digest: str,
    tracking_uri: str,
    champion: Ref | None = None,
    until: str | None = None,
    history: Ref | None = None,
) -> list[StagePlan]:
    """The stages of `spec` in order, up to and including `until`."""
    present = [name for name in ORDER if _is_present(name, spec)]
    if until is not None:
        present = [name for name in present if ORDER.index(name) <= ORDER.index(until)]
    plans = []
    for name in present:
        given: dict[str, Ref] = {}
        if name == "data":
            given["source"] = Ref(spec.data.source, source_digest)
        if name == "tune" and history is not None:
            given["history"] = history
        if name == "evaluate" and champion is not None:
            given["champion"] = champion
        config = _config_of(name, spec, tracking_uri)
        plans.append(StagePlan(name, canonical(config), _inputs_of(name, present), given))
    return plans


def canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def _is_present(name: str, spec: Spec) -> bool:
    sections = {"tune": spec.tune, "compress": spec.compress, "evaluate": spec.evaluate, "register": spec.registry,
                "deploy": spec.deploy}  # fmt: skip
    return name not in sections or sections[name] is not None


def _config_of(name: str, spec: Spec, tracking_uri: str) -> dict[str, Any]:
    """Only what the stage reads, so that a change elsewhere leaves its cached result valid."""
    values = spec.to_dict()
    shared = {key: values[key] for key in ("task", "seed", "model", "train")}
    if name == "data":
        return {"task": spec.task, "data": values["data"]}
    if name == "tune":
        return {**shared, "tune": values["tune"]}
    if name == "train":
        return shared
    if name == "compress":
        return {"task": spec.task, "seed": spec.seed, "compress": values["compress"]}
    if name == "evaluate":
        accept = (values["compress"] or {"accept": {}})["accept"]
        return {"task": spec.task, "seed": spec.seed, "evaluate": values["evaluate"], "accept": accept}
    if name == "register":
        return {"name": spec.model_name}
    return {"name": spec.model_name, "deploy": values["deploy"], "tracking_uri": tracking_uri}


def _inputs_of(name: str, present: list[str]) -> dict[str, str]:
    served = {"compression/model": "compress"} if "compress" in present else {"model": "train"}
    wanted: dict[str, dict[str, str]] = {
        "data": {},
        "tune": {"dataset": "data"},
        "train": {"dataset": "data", "sweep": "tune"},
        "compress": {"dataset": "data", "model": "train"},
        "evaluate": {"dataset": "data", "model": "train", "compression": "compress"},
        "register": {**served, "evaluation": "evaluate"},
        "deploy": {"registration": "register", **served},
    }
    return {key: source for key, source in wanted[name].items() if source in present}


def resolve_inputs(inputs: str) -> dict[str, Ref]:
    """The Refs in an `inputs` parameter, by the names that stages know."""
    refs = {}
    for name, raw in json.loads(inputs).items():
        ref = Ref(raw["uri"], raw["digest"])
        if name == "compression/model":
            digest = open_artifact(ref, kind="compression").manifest.metadata["model_digest"]
            name, ref = "model", Ref(f"{ref.uri}/model", digest)
        refs[name] = ref
    return refs


def inputs_json(plan: StagePlan, outputs: Mapping[str, str]) -> str:
    """The `inputs` parameter of a stage, from the outputs of the stages before it.

    Args:
        outputs: Stage -> JSON of its Ref; placeholders while the graph is built, so this is plain text work: what is
            written then and what is found later must give the same bytes.
    """
    parts = [f'"{name}": {outputs[source]}' for name, source in plan.inputs.items()]
    parts += [f'"{name}": {ref.to_json()}' for name, ref in plan.given.items()]
    return "{" + ", ".join(parts) + "}"
