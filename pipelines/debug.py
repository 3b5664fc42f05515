"""`penstock run --debug`: the stages one after the other in this process, one worker, no kfp and no training group."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from components.artifacts import Ref, open_artifact
from pipelines.ray_cluster import compute_environment, connect_environment
from pipelines.run_folder import RunFolder
from pipelines.runner import planned
from pipelines.stages import inputs_json
from pipelines.worker import CHAMPION, REFUSED, run_stage, verdict


def run_in_process(folder: RunFolder, tick: Callable[[], None]) -> None:
    """Runs every stage of the run; an error comes up as it is, so that a debugger stops where it was raised.

    Args:
        tick: Called after each stage, to draw what is new.
    """
    facts = folder.facts()
    os.environ.update(compute_environment())
    outputs: dict[str, str] = {}
    for plan in planned(folder, facts):
        if plan.name == "register" and _verdict(outputs["evaluate"]) == REFUSED:
            break
        if plan.name == "deploy" and _verdict(outputs["evaluate"]) != CHAMPION:
            break
        if plan.name == "deploy":
            connect_environment(Path(facts.home))
        inputs = inputs_json(plan, outputs)
        outputs[plan.name] = run_stage(folder, plan.name, plan.config, inputs, facts.code).ref.to_json()
        tick()


def _verdict(evaluation: str) -> str:
    return verdict(open_artifact(Ref.from_json(evaluation)).manifest.metadata.get("gate"))
