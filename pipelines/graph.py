"""The one pipeline, built from the planned stages: absent stages are absent nodes, what follows the gate hangs on it.

On a laptop `kfp.local` runs it; on Kubeflow the same object is compiled.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from pipelines.stages import StagePlan, inputs_json

if TYPE_CHECKING:
    from kfp.dsl.base_component import BaseComponent

REFUSED, CHALLENGER, CHAMPION = "refused", "challenger", "champion"
"""What the gate lets a model become. kfp compares these words."""


def build_pipeline(plans: Sequence[StagePlan], code: str) -> BaseComponent:
    """Returns the kfp pipeline of `plans`.

    Args:
        plans: Stages in order, see `pipelines.stages.plan_stages`.
        code: Digest that stands for our sources and libraries: kfp's cache key would not see them change.
    """
    from kfp import dsl

    from pipelines import steps

    by_name = {plan.name: plan for plan in plans}
    outputs: dict[str, Any] = {}

    def add(name: str) -> None:
        plan = by_name[name]
        task = steps.STEPS[name](config=plan.config, inputs=inputs_json(plan, outputs), code=code)
        task.set_caching_options(plan.cached)
        outputs[name] = task.output

    @dsl.pipeline(name="penstock")
    def penstock():  # kfp takes an annotation `-> None` for an output
        for plan in plans:
            if plan.name not in ("register", "deploy"):
                add(plan.name)
        if "register" in by_name:
            verdict = steps.gate(evaluation=outputs["evaluate"]).set_caching_options(False)
            _release(add, verdict.output, "deploy" in by_name)

    return penstock


def _release(add: Callable[[str], None], verdict: Any, deploy: bool) -> None:
    from kfp import dsl

    with dsl.If(verdict != REFUSED):
        add("register")
        if deploy:
            with dsl.If(verdict == CHAMPION):
                add("deploy")
