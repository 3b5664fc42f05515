from __future__ import annotations

import json

import numpy as np

from components.artifacts import Ref
from components.evaluate import gate
from components.evaluate.gate import Comparison
from pipelines.graph import CHALLENGER, CHAMPION, REFUSED, build_pipeline
from pipelines.spec import load_spec
from pipelines.stages import inputs_json, plan_stages
from pipelines.worker import verdict

SHORTEST = {"task": "image-classification", "data": {"source": "builtin://digits"}, "model": {"architecture": "mlp"}}
SPACE = {"tune": {"space": {"train.learning_rate": {"choice": [1e-3, 1e-2]}}}}


def plans_of(values, **more):
    return {plan.name: plan for plan in plan_stages(load_spec(values).spec, "source", "sqlite:///x", **more)}


def test_absent_stages_are_absent_and_until_includes_its_stage():
    assert list(plans_of(SHORTEST)) == ["data", "train", "compress", "evaluate", "register", "deploy"]
    assert list(plans_of({**SHORTEST, **SPACE}, until="train")) == ["data", "tune", "train"]
    assert list(plans_of({**SHORTEST, "deploy": False, "compress": False})) == ["data", "train", "evaluate", "register"]


def test_a_stage_reads_only_its_own_fields():
    change = {**SHORTEST, "deploy": {"port": 9000}, "compress": {"prefer": "latency"}}
    before, after = plans_of(SHORTEST), plans_of(change)
    assert before["train"].config == after["train"].config
    assert before["compress"].config != after["compress"].config
    assert plans_of({**SHORTEST, "train": {"epochs": 3}})["data"].config == before["data"].config


def test_the_served_model_is_the_compressed_one_where_there_is_one():
    assert plans_of(SHORTEST)["register"].inputs == {"compression/model": "compress", "evaluation": "evaluate"}
    assert plans_of({**SHORTEST, "compress": False})["register"].inputs == {"model": "train", "evaluation": "evaluate"}


def test_the_champion_is_an_input_of_evaluate():
    plan = plans_of(SHORTEST, champion=Ref("/champion", "d"))["evaluate"]
    outputs = {name: Ref(f"/{name}", "x").to_json() for name in ("data", "train", "compress")}
    assert json.loads(inputs_json(plan, outputs))["champion"] == {"uri": "/champion", "digest": "d"}


def judged(lost_to_trained: int, lost_to_champion: int) -> dict:
    """The gate's verdict over a compressed model that gets so many of 450 examples wrong that the others get right."""
    right = np.ones(450, bool)
    first, second = (np.arange(450) >= lost for lost in (lost_to_trained, lost_to_champion))
    comparisons = [Comparison(gate.COMPRESSED, first, right), Comparison(gate.CHAMPION, second, right)]
    return gate.judge(comparisons, 450, 0.02, 0.95)


def test_the_gate_decides_what_a_model_may_become():
    assert verdict(None) == REFUSED
    assert verdict(judged(0, 0)) == CHAMPION
    assert verdict(judged(0, 90)) == CHALLENGER
    assert verdict(judged(90, 0)) == REFUSED
    assert verdict(judged(90, 90)) == REFUSED


def test_the_pipeline_compiles_for_kubeflow_too(tmp_path):
    from kfp import compiler

    pipeline = build_pipeline(list(plans_of({**SHORTEST, **SPACE}).values()), "code")
    compiler.Compiler().compile(pipeline, str(tmp_path / "p.yaml"))
    text = (tmp_path / "p.yaml").read_text()
    assert all(f"comp-{name}" in text for name in ("data", "tune", "train", "gate", "register", "deploy"))
