from __future__ import annotations

import pytest
import torch

from components.models.build import build_model, parse_model_config
from components.train.plan.network import Workload
from components.train.plan.speed import count_flops
from components.train.utilization import describe_work, peak_of

TEXT = {"vocab_size": 1000, "max_length": 64, "pad_token_id": 0}
IMAGE = {"image_size": 16, "channels": 3}


def network(architecture, inputs, **fields):
    config = parse_model_config({"architecture": architecture, "hidden_size": 64, "num_hidden_layers": 3, **fields})
    return config, build_model(config, inputs, 10)


@pytest.mark.parametrize("architecture", ["gpt", "llama"])
def test_a_decoders_work_is_that_of_its_operations(architecture):
    config, module = network(architecture, TEXT, dropout=0.0)
    work = describe_work(module)
    counted = count_flops(Workload("text-generation", config, TEXT, 1000))
    # The operation counter knows no attention kernel of a CPU; biases and normalisations are no products.
    assert 64 * work.weights == pytest.approx(counted, rel=0.02)
    assert work.attention == 12 * 3 * 64
    windows = torch.zeros(2, 64, dtype=torch.int64)
    assert work.flops({"input_ids": windows}) == 2 * 64 * (work.weights + 64 * work.attention)


def test_a_vits_tokens_are_its_patches_and_the_class():
    _, module = network("vit", IMAGE, patch_size=4)
    one, two = (describe_work(module).flops({"pixel_values": torch.zeros(n, 3, 16, 16)}) for n in (1, 2))
    assert two == 2 * one
    assert describe_work(module).patches == 17


def test_frozen_weights_need_no_gradient_of_their_own():
    _, module = network("llama", TEXT)
    whole = describe_work(module).weights
    for value in module.parameters():
        value.requires_grad_(False)
    assert describe_work(module).weights == pytest.approx(whole * 4 / 6)


def test_other_networks_have_no_formula():
    assert describe_work(build_model(parse_model_config({"architecture": "mlp"}), IMAGE, 10)) is None
    assert describe_work(build_model(parse_model_config({"architecture": "resnet"}), IMAGE, 10)) is None


def test_the_peak_of_a_cpu_is_measured_once():
    peak = peak_of("cpu", "fp32", 1)
    assert peak.flops > 1e8
    assert peak.source.startswith("measured")
    assert peak_of("cpu", "fp32", 1) is peak
