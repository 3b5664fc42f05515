"""components/tune/space.py: what a sweep may address, and what a value makes of the sections."""

from __future__ import annotations

import pytest
from pydantic import TypeAdapter, ValidationError

from components.models.config import ModelConfig
from components.train.config import TrainConfig
from components.tune.config import TuneConfig
from components.tune.space import apply_config, check_space

VIT = TypeAdapter(ModelConfig).validate_python({"architecture": "vit", "hidden_size": 192})


def problems(space: dict, train: TrainConfig | None = None) -> dict[str, str]:
    items = TuneConfig(search="random", space=space).space
    return {error.field: error.message for error in check_space(items, VIT, train or TrainConfig())}


def test_dotted_values_reach_their_fields():
    model, train = apply_config(VIT, TrainConfig(), {"model.patch_size": 2, "train.optimizer.momentum": 0.5})
    assert (model.patch_size, model.hidden_size, train.optimizer.momentum) == (2, 192, 0.5)


def test_a_section_keeps_what_it_does_not_name():
    base = TrainConfig(learning_rate=0.5, optimizer={"name": "sgd", "momentum": 0.5})
    _, train = apply_config(VIT, base, {"train": {"optimizer": {"name": "momentum"}}})
    assert (train.optimizer.name, train.optimizer.momentum, train.learning_rate) == ("momentum", 0.5, 0.5)


def test_another_architecture_starts_from_its_own_defaults():
    values = {"model.num_filters": 7, "model": {"architecture": "text-cnn"}, "model.patch_size": 2}
    model, _ = apply_config(VIT, TrainConfig(), values)
    assert (model.architecture, model.num_filters) == ("text-cnn", 7)


def test_the_same_architecture_keeps_the_specs_fields():
    model, _ = apply_config(VIT, TrainConfig(), {"model": {"architecture": "vit", "patch_size": 2}})
    assert (model.hidden_size, model.patch_size) == (192, 2)


def test_an_absent_section_is_made_by_its_field():
    _, train = apply_config(VIT, TrainConfig(), {"train.early_stop.patience": 3})
    assert train.early_stop.patience == 3


def test_a_refused_value_raises():
    with pytest.raises(ValidationError):
        apply_config(VIT, TrainConfig(), {"train.learning_rate": -1})


def test_a_sound_space_has_no_problems():
    space = {
        "train.learning_rate": {"log_uniform": [1e-4, 1e-2]},
        "train.optimizer": {"choice": [{"name": "sgd"}, {"name": "adamw"}]},
        "model": {"choice": [{"architecture": "vit"}, {"architecture": "cnn"}]},
        "model.kernel_size": {"int_uniform": [2, 5]},
    }
    assert problems(space) == {}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("train.lerning_rate", "did you mean train.learning_rate?"),
        ("learning_rate", "did you mean train.learning_rate?"),
        ("data.split.seed", "fields of `model` and `train`"),
        ("compress.prefer", "fields of `model` and `train`"),
        ("model.num_filters", "is no field of vit; it belongs to text-cnn"),
        ("train.optimizer.nam", "did you mean train.optimizer.name?"),
        ("train.epochs", "is the same for all trials"),
        ("train.zero.stage", "train.zero is the same for all trials"),
    ],
)
def test_a_name_that_cannot_be_searched_is_refused(name, text):
    found = problems({name: {"choice": [1]}, "train.learning_rate": {"choice": [0.1]}})
    assert list(found) == [f"tune.space.{name}"]
    assert text in found[f"tune.space.{name}"]


@pytest.mark.parametrize(
    ("name", "item", "text"),
    [
        ("train.learning_rate", {"choice": [0.1, "big"]}, "cannot be 'big'"),
        ("train.global_batch_size", {"uniform": [16, 32]}, "valid integer"),
        ("train.optimizer", {"choice": [{"name": "lion"}]}, "'sgd', 'momentum'"),
        ("model", {"choice": [{"architecture": "alexnet"}]}, "does not match any of the expected tags"),
        ("model.num_attention_heads", {"choice": [4, 5]}, "hidden_size 192 does not divide"),
        ("train", {"choice": [{"workers": 2}]}, "train.workers is the same"),
    ],
)
def test_a_refused_value_is_named(name, item, text):
    assert text in problems({name: item, "train.gradient_clipping": {"choice": [1.0]}})[f"tune.space.{name}"]


def test_a_rule_between_fields_counts_only_if_no_combination_fits():
    space = {"model.hidden_size": {"choice": [100, 96]}, "model.num_attention_heads": {"choice": [5, 4]}}
    assert problems(space) == {}
    space["model.num_attention_heads"] = {"choice": [4, 7]}
    assert list(problems(space)) == ["tune.space.model.num_attention_heads"]
