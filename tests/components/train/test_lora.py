"""Adapters: only they and the classifier are trained, and what is kept is a plain network."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from components.artifacts.dataset import open_split
from components.errors import SpecError
from components.models.build import build_model, parse_model_config
from components.models.folder import model_values, named_weights
from components.models.lora import add_adapters, merge_adapters
from components.tasks import get_task
from components.train.feed import Feed
from components.train.loop import train
from components.train.plan.network import Workload, count_parameters
from components.train.plan.states import Sharding, state_bytes
from tests.components.train.jobs import FakeWorker, Stopped, make_job

INPUTS = {"vocab_size": 100, "max_length": 8, "pad_token_id": 0, "image_size": 8, "channels": 1}
SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "dropout": 0.0}
VIT = {"architecture": "vit", "patch_size": 4, **SIZES, "lora": {"rank": 4}}


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def network(architecture, **lora):
    config = parse_model_config({"architecture": architecture, **SIZES, "lora": lora})
    module = build_model(config, INPUTS, 10)
    plain = named_weights(module)
    add_adapters(module, config)
    return config, module, plain


@pytest.mark.parametrize("architecture", ["gpt", "llama", "bert", "vit"])
def test_a_merged_network_answers_as_one_with_adapters(architecture):
    config, module, plain = network(architecture, rank=4, alpha=8)
    for name, value in module.named_parameters():
        if "lora_B" in name:  # zero at the start
            torch.nn.init.normal_(value, std=0.1)
    merged = merge_adapters(module, named_weights(module))
    assert merged.keys() == plain.keys()
    assert any(not torch.equal(merged[name], value) for name, value in plain.items())
    other = build_model(config, INPUTS, 10)
    other.load_state_dict(merged, strict=False)
    inputs = {"input_ids": torch.arange(16).reshape(2, 8)}
    if architecture == "bert":
        inputs["attention_mask"] = torch.ones(2, 8, dtype=torch.int64)
    if architecture == "vit":
        inputs = {"pixel_values": torch.rand(2, 1, 8, 8)}
    assert torch.allclose(other.eval()(**inputs), module.eval()(**inputs), atol=1e-5)


def test_only_adapters_and_the_classifier_are_trained():
    _, module, _ = network("bert", target_modules=["query", "value"])
    trained = {name for name, value in module.named_parameters() if value.requires_grad}
    assert trained == {
        name for name, _ in module.named_parameters() if "lora_" in name or name.startswith("classifier")
    }
    assert sum("lora_A" in name for name in trained) == 2 * SIZES["num_hidden_layers"]


def test_a_layer_that_is_not_there_is_refused_with_those_that_are():
    with pytest.raises(SpecError, match=r"names q_proj, but .* query"):
        network("bert", target_modules=["q_proj"])


@pytest.mark.parametrize("stage", [0, 2])
def test_a_model_is_kept_plain_and_as_it_was_measured(stage, digits, tmp_path):
    job = make_job(digits, tmp_path, VIT, epochs=2, learning_rate=1e-2, zero={"stage": stage})
    result = train(job, FakeWorker())
    task = get_task(job.task)
    preprocessing = task.load(job.dataset / "preprocess")
    values = model_values(job.task, job.model, preprocessing.model_inputs(), preprocessing.classes)
    assert "lora" not in values["architecture"]
    module = build_model(parse_model_config(values["architecture"]), values["inputs"], 10).eval()
    module.load_state_dict(load_file(result.weights))
    split = open_split(job.dataset, "validation")
    inputs, _ = Feed(split, preprocessing, "cpu").batch(np.arange(len(split)))
    metrics = task.metrics(module(**inputs).detach().numpy(), split.labels())
    assert metrics == pytest.approx(dict(result.metrics), rel=1e-4)
    facts = result.facts
    assert facts["trainable_parameters"] < facts["parameters"] == sum(value.numel() for value in module.parameters())


def test_a_stop_changes_nothing_of_it(digits, tmp_path):
    undisturbed = train(make_job(digits, tmp_path / "whole", VIT, epochs=2), FakeWorker())
    job = make_job(digits, tmp_path / "stopped", VIT, epochs=2)
    with pytest.raises(Stopped):
        train(job, FakeWorker(stop_at=1))
    assert train(job, FakeWorker()).weights.read_bytes() == undisturbed.weights.read_bytes()


def test_sharded_weights_take_no_adapters(digits, tmp_path):
    with pytest.raises(SpecError, match="merges adapters") as caught:
        train(make_job(digits, tmp_path, VIT, zero={"stage": 3}), FakeWorker())
    assert caught.value.field == "model.lora"


def test_the_plan_counts_states_of_what_is_trained_only():
    config, module, _ = network("llama", rank=4)
    sizes = count_parameters(Workload("text-generation", config, INPUTS, 100))
    assert sizes.trained == sum(value.numel() for value in module.parameters() if value.requires_grad)
    assert sizes.parameters == sum(value.numel() for value in module.parameters())
    states = state_bytes(sizes.parameters, "adamw", Sharding(0, 1), frozen=sizes.frozen)
    assert (states.weights, states.gradients, states.optimizer) == (
        4 * sizes.parameters,
        4 * sizes.trained,
        8 * sizes.trained,
    )
