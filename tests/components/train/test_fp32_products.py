from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from components.models.build import build_model, parse_model_config
from components.train import fp32_products
from components.train.fp32_products import Linear, multiplies_fp32_faster, multiply_in_fp32

DECODER = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "dropout": 0.0}
TEXT = {"vocab_size": 50, "max_length": 16, "pad_token_id": 0}
NETWORKS: dict[str, tuple[dict[str, Any], dict[str, int]]] = {
    "gpt": (DECODER, TEXT),
    "llama": ({**DECODER, "num_key_value_heads": 2}, TEXT),
    "bert": (DECODER, TEXT),
    "t5": ({"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "dropout": 0.0},
           {**TEXT, "max_target_length": 8, "eos_token_id": 1}),
    "vit": ({**DECODER, "patch_size": 4}, {"image_size": 8, "channels": 1}),
    "mlp": ({"dropout": 0.0}, {"channels": 1, "image_size": 8}),
}  # fmt: skip


def make_network(name: str) -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """A small network in training mode and a batch for it."""
    values, sizes = NETWORKS[name]
    torch.manual_seed(0)
    module = build_model(parse_model_config({"architecture": name, **values}), sizes, 3).train()
    if "image_size" in sizes:
        return module, {"pixel_values": torch.randn(2, 1, 8, 8)}
    ids = torch.randint(1, 50, (2, 16))
    if name in ("gpt", "llama"):
        return module, {"input_ids": ids}
    masked = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return module, masked if name == "bert" else {**masked, "decoder_input_ids": ids[:, :8]}


def gradients(module: nn.Module, inputs: dict[str, torch.Tensor], bf16: bool) -> torch.Tensor:
    """Of all weights, one after the other, of some loss."""
    module.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        logits = module(**inputs).float()
    logits.square().mean().backward()
    return torch.cat([value.grad.flatten() for value in module.parameters() if value.grad is not None])


@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_are_as_near_to_those_of_fp32_as_autocasts_own(name: str) -> None:
    module, inputs = make_network(name)
    exact, autocast = gradients(module, inputs, bf16=False), gradients(module, inputs, bf16=True)
    names = list(module.state_dict())
    multiply_in_fp32(module)
    ours = gradients(module, inputs, bf16=True)
    assert list(module.state_dict()) == names
    assert 0 < (ours - exact).norm() < 2 * (autocast - exact).norm() < 0.1 * exact.norm()
    assert torch.equal(gradients(module, inputs, bf16=False), exact)


@pytest.mark.parametrize("name", ["gpt", "llama", "vit"])
def test_nothing_wider_is_kept_than_autocast_keeps(name: str) -> None:
    module, inputs = make_network(name)
    before = kept_bytes(module, inputs)
    multiply_in_fp32(module)
    assert kept_bytes(module, inputs) <= before


def kept_bytes(module: nn.Module, inputs: dict[str, torch.Tensor]) -> int:
    """What autograd keeps beside the weights."""
    weights, kept = {value.untyped_storage().data_ptr() for value in module.parameters()}, {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        with torch.autocast("cpu", torch.bfloat16):
            module(**inputs)
    return sum(kept.values())


def test_attention_without_a_mask_is_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    from components.train import fp32_attention

    seen = []
    kernel = fp32_attention.Attention.apply
    monkeypatch.setattr(fp32_attention.Attention, "apply", lambda *given: seen.append(1) or kernel(*given))
    module, inputs = make_network("gpt")
    multiply_in_fp32(module)
    gradients(module, inputs, bf16=True)
    assert len(seen) == DECODER["num_hidden_layers"]
    gradients(module, inputs, bf16=False)
    assert len(seen) == DECODER["num_hidden_layers"]


def test_frozen_weights_get_no_gradient() -> None:
    layer = Linear(4, 3)
    layer.weight.requires_grad_(False)
    inputs = torch.randn(2, 4, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        result = layer(inputs)
    result.float().sum().backward()
    assert result.dtype is torch.bfloat16
    assert layer.weight.grad is None and layer.bias.grad is not None
    assert torch.allclose(inputs.grad, layer.weight.sum(0).expand(2, 4))


def test_generated_code_multiplies_in_fp32_in_both_directions() -> None:
    module, inputs = make_network("gpt")
    multiply_in_fp32(module)
    operations: list[str] = []

    def note(graph: torch.fx.GraphModule, _: Any) -> Any:
        products = [
            node
            for node in graph.graph.nodes
            if node.target in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default)
        ]
        operations.extend(str(node.meta["val"].dtype) for node in products)
        return graph.forward

    from torch._dynamo.backends.common import aot_autograd

    exact = gradients(module, inputs, bf16=False)
    module.compile(backend=aot_autograd(fw_compiler=note))
    assert (gradients(module, inputs, bf16=True) - exact).norm() < 0.05 * exact.norm()
    assert len(operations) > 20 and set(operations) == {"torch.float32"}


@pytest.mark.parametrize(("narrow_s", "faster"), [(1.0, False), (2.0, True)])
def test_the_probe_asks_the_clock(monkeypatch: pytest.MonkeyPatch, narrow_s: float, faster: bool) -> None:
    timed = iter([narrow_s, 1.0] * 50)
    monkeypatch.setattr(fp32_products, "seconds", lambda work: next(timed))
    assert multiplies_fp32_faster() is faster


def test_a_product_is_rounded_once() -> None:
    layer, inputs = Linear(64, 8), torch.randn(5, 64)
    with torch.autocast("cpu", torch.bfloat16):
        result = layer(inputs)
    exact = functional.linear(inputs.bfloat16().float(), layer.weight, layer.bias)
    assert torch.equal(result, exact.bfloat16())
