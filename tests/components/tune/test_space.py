"""components/tune/space.py: conditions, constraints and the grid."""

from __future__ import annotations

import itertools
import random

import pytest
from pydantic import TypeAdapter

from components.errors import StageError
from components.models.config import ModelConfig
from components.train.config import TrainConfig
from components.tune.config import TuneConfig
from components.tune.space import SearchSpace

VIT = TypeAdapter(ModelConfig).validate_python({"architecture": "vit", "hidden_size": 96})
NESTED = {
    "model.architecture": {"choice": ["vit", "cnn"]},
    "model.patch_size": {"choice": [2, 4], "when": "model.architecture == vit"},
    "model.num_hidden_layers": {"int_uniform": [1, 3], "when": "model.patch_size == 2"},
    "model.kernel_size": {"choice": [3, 5], "when": "model.architecture == cnn"},
}


def make_space(space: dict, **tune) -> SearchSpace:
    return SearchSpace(TuneConfig.model_validate({"space": space, **tune}), VIT, TrainConfig())


def test_a_grid_is_the_product_in_the_stated_order():
    space = make_space({"train.global_batch_size": {"grid": [16, 32]}, "train.learning_rate": {"choice": [1, 2, 3]}})
    points = [tuple(point.values()) for point in space.grid()]
    assert points == list(itertools.product([16, 32], [1, 2, 3]))


def test_a_grid_has_each_configuration_of_a_nested_space_once():
    points = [tuple(point.values()) for point in make_space(NESTED).grid()]
    assert points == [("vit", 2, 1), ("vit", 2, 2), ("vit", 2, 3), ("vit", 4), ("cnn", 3), ("cnn", 5)]


def test_a_grid_leaves_out_what_constraints_and_sections_refuse():
    space = {"model.hidden_size": {"grid": [32, 64, 96]}, "model.num_attention_heads": {"grid": [3, 4]}}
    constrained = make_space(space, constraints=["model.hidden_size <= 24 * model.num_attention_heads"])
    # 32 and 64 do not divide by 3; 96 is above 24 x 3.
    assert [tuple(point.values()) for point in constrained.grid()] == [(32, 4), (64, 4), (96, 4)]


def test_draws_meet_constraints_and_hold_only_active_entries():
    space = make_space(NESTED, constraints=["model.kernel_size != 5"])
    draws = [space.draw(random.Random(number)) for number in range(200)]
    kinds = {tuple(draw) for draw in draws}
    assert kinds == {
        ("model.architecture", "model.patch_size", "model.num_hidden_layers"),
        ("model.architecture", "model.patch_size"),
        ("model.architecture", "model.kernel_size"),
    }
    assert {draw.get("model.kernel_size") for draw in draws} == {None, 3}
    assert all(space.contains(draw) for draw in draws)


@pytest.mark.parametrize(
    "config",
    [
        {"model.architecture": "vit"},
        {"model.architecture": "cnn", "model.kernel_size": 4},
        {"model.architecture": "cnn", "model.kernel_size": 3, "model.patch_size": 2},
        {"model.architecture": "cnn", "model.kernel_size": 3, "train.learning_rate": 1e-3},
        {"model.architecture": "cnn", "model.kernel_size": 5},
    ],
)
def test_what_cannot_be_drawn_is_not_contained(config):
    assert not make_space(NESTED, constraints=["model.kernel_size != 5"]).contains(config)


def test_a_space_that_nothing_meets_ends():
    space = make_space({"train.learning_rate": {"uniform": [0.1, 0.2]}}, constraints=["train.learning_rate > 1"])
    with pytest.raises(StageError, match="loosen them"):
        space.draw(random.Random(0))
