import pytest

from components.train.plan.rough import rough_bytes
from components.train.plan.search import GIB, Demand, Machine, Planner
from tests.components.train.plan.workloads import llama_70b, make_workload


@pytest.mark.parametrize("architecture", ["mlp", "cnn", "resnet", "vit", "bert", "lstm", "gpt", "llama", "t5"])
def test_is_never_below_the_closer_look(architecture):
    workload = make_workload(architecture)
    planner = Planner(Demand(workload, "adamw", "fp32", 64, 1), Machine("cpu", 0), exact=True)
    exact = planner.predict(planner.setting(next(planner.ways()), 64))
    assert exact.device_bytes < rough_bytes(workload, 64) < 24 * GIB


def test_sees_that_a_large_model_needs_a_closer_look():
    assert rough_bytes(llama_70b(), 1) > 1000 * GIB
