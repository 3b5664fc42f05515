"""A network that is made sharded (ZeRO-3) has the weights of one made whole, trains like it and is kept like it."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from components.models.build import build_model, parse_model_config
from components.models.folder import count_parameters, named_weights, stream_weights
from components.train.config import TrainConfig
from components.train.device import Hardware, plan_placement
from components.train.engine import EngineSettings, build_sharded, make_engine
from components.train.loop import train
from components.train.optimizer import parameter_groups
from components.train.randomness import seed_everything
from tests.components.train.jobs import FakeWorker, make_job

INPUTS = {"vocab_size": 100, "max_length": 8, "pad_token_id": 0, "image_size": 8, "channels": 1}
INPUTS |= {"max_target_length": 8, "eos_token_id": 1}
SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
VIT = {"architecture": "vit", "patch_size": 4, "dropout": 0.0, **SIZES}


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def settings():
    config = TrainConfig.model_validate({"zero": {"stage": 3}, "global_batch_size": 1})
    return EngineSettings(config, plan_placement(Hardware(0, 1), 1, "fp32"), "fp32", rank=0, world_size=1)


@pytest.mark.parametrize("architecture", ["gpt", "llama", "vit", "bert", "t5"])
def test_weights_are_those_of_a_network_made_whole(architecture, tmp_path):
    config = parse_model_config({"architecture": architecture, **SIZES})
    seed_everything(0, rank=0)
    whole = build_model(config, INPUTS, 10)
    after = torch.rand(1)
    seed_everything(0, rank=0)
    with build_sharded(settings()):
        module = build_model(config, INPUTS, 10)
    assert torch.equal(torch.rand(1), after)  # the generators stay together, too
    sharded = [value for value in module.parameters() if hasattr(value, "ds_id")]
    assert all(value.data.numel() == 0 for value in sharded)
    assert count_parameters(module) == count_parameters(whole)
    assert [len(group["params"]) for group in parameter_groups(module, 0.1)] == [
        len(group["params"]) for group in parameter_groups(whole, 0.1)
    ]
    engine = make_engine(module, settings())
    engine.write_weights(tmp_path / "weights.safetensors")
    engine.close()
    kept, expected = load_file(tmp_path / "weights.safetensors"), named_weights(whole)
    assert kept.keys() == expected.keys()
    assert all(torch.equal(kept[name], value) for name, value in expected.items())


def test_it_trains_as_a_whole_one_does(digits, tmp_path):
    losses = []
    for stage in (0, 3):
        result = train(make_job(digits, tmp_path / str(stage), VIT, epochs=2, zero={"stage": stage}), FakeWorker())
        losses.append([entry["loss"] for entry in result.history])
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)  # sums over flattened shards in another order


def test_pretrained_weights_are_read_shard_by_shard(digits, tmp_path):
    config = parse_model_config(VIT)
    build_model(config, INPUTS, 10).encoder.save_pretrained(tmp_path / "pretrained")
    config = config.model_copy(update={"pretrained": str(tmp_path / "pretrained")})
    with build_sharded(settings()):
        module = build_model(config, INPUTS, 10)
    engine = make_engine(module, settings())
    engine.write_weights(tmp_path / "weights.safetensors")
    engine.close()
    kept, whole = load_file(tmp_path / "weights.safetensors"), build_model(config, INPUTS, 10)
    read = {name: value for name, value in named_weights(whole).items() if name.startswith("encoder.")}
    assert read and all(torch.equal(kept[name], value) for name, value in read.items())


@pytest.mark.parametrize("tied", [True, False])
def test_a_pretrained_t5_is_read_shard_by_shard(tied, tmp_path):
    """T5 1.1 has an output layer of its own, which is told by the weights alone."""
    config = parse_model_config({"architecture": "t5", **SIZES})
    build_model(config, INPUTS, 100).encoder_decoder.save_pretrained(tmp_path)
    if not tied:
        weights = load_file(tmp_path / "model.safetensors")
        weights["lm_head.weight"] = torch.randn(100, 16)
        save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    config = config.model_copy(update={"pretrained": str(tmp_path)})
    with build_sharded(settings()):
        module = build_model(config, INPUTS, 100)
    engine = make_engine(module, settings())
    engine.write_weights(tmp_path / "weights.safetensors")
    engine.close()
    kept, expected = load_file(tmp_path / "weights.safetensors"), named_weights(build_model(config, INPUTS, 100))
    assert kept.keys() == expected.keys()
    assert ("encoder_decoder.lm_head.weight" in kept) is not tied
    assert all(torch.equal(kept[name], value) for name, value in expected.items())


def test_streamed_weights_are_plain_safetensors(tmp_path):
    weights = {"a": torch.arange(3.0), "b.c": torch.ones(2, 2, dtype=torch.bfloat16), "d": torch.tensor(5)}
    shapes = {name: tuple(value.shape) for name, value in weights.items()}
    stream_weights(tmp_path / "weights.safetensors", shapes, weights.values())
    loaded = load_file(tmp_path / "weights.safetensors")
    assert {name: value.tolist() for name, value in loaded.items()} == {
        name: value.float().tolist() for name, value in weights.items()
    }
    content = (tmp_path / "weights.safetensors").read_bytes()
    assert json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["a"]["data_offsets"] == [0, 12]
