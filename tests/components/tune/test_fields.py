"""components/tune/fields.py: what a chosen value makes of the sections."""

from __future__ import annotations

import pytest
from pydantic import TypeAdapter, ValidationError

from components.models.config import ModelConfig
from components.train.config import TrainConfig
from components.tune.fields import apply_config, merge_config

VIT = TypeAdapter(ModelConfig).validate_python({"architecture": "vit", "hidden_size": 192})


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


def test_merged_sections_hold_every_field_and_are_not_validated():
    merged = merge_config(VIT, TrainConfig(), {"model.architecture": "cnn", "train.learning_rate": -1})
    assert (merged["model"]["kernel_size"], merged["train"]["learning_rate"]) == (3, -1)
    assert "patch_size" not in merged["model"]
