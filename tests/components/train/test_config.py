"""`train.workers: {min, max}`: what it means, and what cannot be with it."""

import pytest

from components.train.config import TrainConfig
from pipelines.spec import load_spec
from pipelines.spec_errors import SpecErrors


def load(train):
    """The section as a whole spec has it."""
    values = {"task": "image-classification", "data": {"source": "builtin://digits"}, "model": {"architecture": "mlp"}}
    return load_spec({"name": "elastic", **values, "train": train}).spec.train


def test_a_range_of_workers_is_two_numbers():
    config = load({"workers": {"min": 2, "max": 4}, "global_batch_size": 24})
    assert (config.min_workers, config.workers, list(config.world_sizes())) == (2, 4, [2, 3, 4])
    assert load(config.model_dump()) == config
    assert list(TrainConfig(workers=2).world_sizes()) == [2]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"workers": {"min": 2}}, "give a number, or min and max"),
        ({"workers": {"min": 4, "max": 2}}, r"workers\.min 4 is more than workers\.max 2"),
        ({"workers": {"min": 0, "max": 2}}, "greater than or equal to 1"),
        (
            {"workers": {"min": 1, "max": 4}, "global_batch_size": 64},
            "64 does not divide among 3 workers .* multiple of 12",
        ),
        (
            {"workers": {"min": 2, "max": 4}, "global_batch_size": 8, "gradient_accumulation_steps": 2},
            "8 does not divide among 3 workers .* multiple of 24",
        ),
        (
            {"workers": {"min": 1, "max": 2}, "zero": {"stage": 2}, "optimizer": {"name": "momentum"}},
            "momentum does not allow; take adam or adamw",
        ),
    ],
)
def test_a_range_that_cannot_be_is_one_sentence(values, said):
    with pytest.raises(SpecErrors, match=said):
        load(values)


def test_variables_are_those_of_the_network_between_workers():
    assert load({"environment": {"NCCL_SOCKET_IFNAME": "eth0"}}).environment == {"NCCL_SOCKET_IFNAME": "eth0"}
    with pytest.raises(SpecErrors, match="environment sets AWS_SECRET_ACCESS_KEY; it is for variables that begin with"):
        load({"environment": {"AWS_SECRET_ACCESS_KEY": "x"}})


def test_editors_are_told_of_both_forms():
    number, both = TrainConfig.model_json_schema()["properties"]["workers"]["anyOf"]
    assert number["type"] == "integer"
    assert both["required"] == ["min", "max"]
