"""components/tune/check.py: what `penstock check` says about a sweep, before anything starts."""

from __future__ import annotations

import pytest
from pydantic import TypeAdapter

from components.models.config import ModelConfig
from components.tasks import get_task
from components.train.config import TrainConfig
from components.tune.check import check_tune
from components.tune.config import TuneConfig

VIT = TypeAdapter(ModelConfig).validate_python({"architecture": "vit", "hidden_size": 192})


def problems(space: dict, train: TrainConfig | None = None, **tune) -> dict[str, str]:
    config = TuneConfig.model_validate({"search": "random", "space": space, **tune})
    return {
        error.field: error.message
        for error in check_tune(config, VIT, train or TrainConfig(), get_task("image-classification"))
    }


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


RATE = {"train.learning_rate": {"log_uniform": [1e-4, 1e-2]}}
ARCHITECTURES = {"model.architecture": {"choice": ["vit", "cnn"]}}


@pytest.mark.parametrize(
    ("space", "tune", "field", "text"),
    [
        (RATE, {"constraints": ["train.learning_rat < 1"]}, "tune.constraints", "did you mean train.learning_rate"),
        (RATE, {"constraints": ["train.learning_rate > 1"]}, "tune.constraints", "none of 1,000 configurations"),
        (
            {**RATE, "train.regularize.l2": {"choice": [0, 1], "when": "model.architecture == bert"}},
            {},
            "tune.space.train.regularize.l2",
            "never holds",
        ),
        (
            {"model.kernel_size": {"choice": [2, 3], "when": "model.architecture == cnn"}, **ARCHITECTURES},
            {},
            "tune.space.model.kernel_size",
            "is searched after model.kernel_size; state it before",
        ),
        (
            {"train.global_batch_size": {"grid": [16, 32]}},
            {"search": "grid", "trials": 3},
            "tune.trials",
            "the grid has 2 points",
        ),
        (
            {"train.global_batch_size": {"grid": [16, 32]}},
            {"search": "grid", "constraints": ["train.global_batch_size > 64"]},
            "tune.constraints",
            "no point of the grid",
        ),
        (RATE, {"metric": "bleu"}, "tune.metric", "bleu is reported by no trial; take one of accuracy, f1, loss"),
        (RATE, {"metric": ["latency_ms"]}, "tune.metric", "as the first aim must be"),
        (RATE, {"metric": ["accuracy", "accuracy"]}, "tune.metric", "twice"),
        (RATE, {"choose": {"prefer": "loss"}}, "tune.choose.prefer", "is no aim"),
        (RATE, {"points": [{"train.epochs": 3}]}, "tune.points.0", "does not search"),
        (RATE, {"points": [{}, {"train.learning_rate": 1}]}, "tune.points.1", "lies outside"),
        (
            RATE,
            {"points": [{"train.learning_rate": 1e-2}], "constraints": ["train.learning_rate < 1e-3"]},
            "tune.points.0",
            "breaks a constraint",
        ),
    ],
)
def test_what_cannot_be_met_is_told_in_one_sentence(space, tune, field, text):
    found = problems(space, **tune)
    assert list(found) == [field]
    assert text in found[field]
    assert "\n" not in found[field]


def test_a_field_of_another_architecture_is_checked_too():
    space = {**ARCHITECTURES, "model.kernel_size": {"choice": ["wide"], "when": "model.architecture == cnn"}}
    assert "cannot be 'wide'" in problems(space)["tune.space.model.kernel_size"]


def test_sound_conditions_and_constraints_have_no_problems():
    space = {**RATE, **ARCHITECTURES, "model.kernel_size": {"choice": [2, 3], "when": "model.architecture == cnn"}}
    assert problems(space, constraints=["train.learning_rate <= 5e-3 or model.architecture == cnn"]) == {}
