"""components/tune/pbt.py: who takes over from whom, and with what."""

from __future__ import annotations

import random

from components.models.config import MlpConfig
from components.train.config import TrainConfig
from components.tune.config import PbtConfig, TuneConfig
from components.tune.pbt import Member, explore, plan_generation
from components.tune.space import SearchSpace

SPACE = {
    "train.learning_rate": {"log_uniform": [1e-5, 1e-1]},
    "train.schedule.gamma": {"choice": [0.1, 0.5, 0.9]},
    "train.global_batch_size": {"choice": [32, 64]},
    "model.dropout": {"uniform": [0, 0.5]},
}
SEARCH = SearchSpace(TuneConfig.model_validate({"space": SPACE}), MlpConfig(architecture="mlp"), TrainConfig())


def members(values: list[float]) -> list[Member]:
    return [Member(number, SEARCH.draw(random.Random(number)), value) for number, value in enumerate(values)]


def test_the_worst_quarter_takes_over_from_the_best():
    exploits = plan_generation(PbtConfig(), SEARCH, 0, 2, members([0.1, 0.9, 0.5, 0.6, 0.2, 0.8, 0.4, 0.3]))
    assert [exploit.trial for exploit in exploits] == [0, 4]
    assert {exploit.source for exploit in exploits} <= {1, 5}


def test_equals_keep_what_they_have_and_one_alone_too():
    assert plan_generation(PbtConfig(), SEARCH, 0, 2, members([0.5] * 8)) == []
    assert plan_generation(PbtConfig(), SEARCH, 0, 2, members([0.5])) == []


def test_what_a_network_cannot_change_stays_as_the_parent_has_it():
    parent = SEARCH.draw(random.Random(0))
    children = [explore(PbtConfig(), SEARCH, parent, random.Random(number)) for number in range(40)]
    for name in ("train.global_batch_size", "model.dropout"):
        assert {child[name] for child in children} == {parent[name]}
    assert len({child["train.learning_rate"] for child in children}) > 5
    assert len({child["train.schedule.gamma"] for child in children}) == 3
    assert all(SEARCH.contains(child) for child in children)
