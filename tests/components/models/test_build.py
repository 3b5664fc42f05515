"""Every architecture builds, is blind to padding, and can be exported with a free batch."""

from __future__ import annotations

import pytest
import torch

from components.errors import SpecError
from components.models.build import build_model, parse_model_config
from components.models.config import ARCHITECTURES

IMAGE = {"image_size": 8, "channels": 1}
TEXT = {"vocab_size": 50, "max_length": 12, "pad_token_id": 0}
TEXT_ARCHITECTURES = ("bert", "text-cnn", "lstm", "gru")
DECODERS = ("gpt", "llama")


def tiny(architecture, **values):
    sizes: dict = {name: {"hidden_size": 16} for name in ("vit", "bert", *DECODERS)}
    sizes["vit"]["patch_size"] = 2
    config = parse_model_config({"architecture": architecture, **sizes.get(architecture, {}), **values})
    torch.manual_seed(0)
    return build_model(config, TEXT if architecture in (*TEXT_ARCHITECTURES, *DECODERS) else IMAGE, 3)


def batch(architecture):
    generator = torch.Generator().manual_seed(1)
    if architecture in DECODERS:
        return {"input_ids": torch.randint(0, 50, (3, 12), generator=generator)}
    if architecture not in TEXT_ARCHITECTURES:
        return {"pixel_values": torch.randn(3, 1, 8, 8, generator=generator)}
    input_ids = torch.randint(1, 50, (3, 12), generator=generator)
    attention_mask = torch.ones_like(input_ids)
    attention_mask[1, 7:], input_ids[1, 7:] = 0, 0
    return {"input_ids": input_ids, "attention_mask": attention_mask}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_gradient_reaches_every_parameter(architecture):
    module = tiny(architecture)
    logits = module(**batch(architecture))
    assert logits.shape == ((3, 12, 50) if architecture in DECODERS else (3, 3))
    logits.pow(2).sum().backward()
    assert [name for name, value in module.named_parameters() if value.grad is None] == []


@pytest.mark.parametrize("architecture", TEXT_ARCHITECTURES)
def test_padding_does_not_change_the_answer(architecture):
    module, inputs = tiny(architecture).eval(), batch(architecture)
    together = module(**inputs)[1]
    alone = module(**{name: tensor[1:2, :7] for name, tensor in inputs.items()})[0]
    torch.testing.assert_close(together, alone, atol=1e-6, rtol=1e-5)  # fp32 sums in another order


@pytest.mark.parametrize("architecture", DECODERS)
def test_a_decoder_does_not_see_what_follows(architecture):
    module, inputs = tiny(architecture).eval(), batch(architecture)["input_ids"]
    later = inputs.clone()
    later[:, 7:] = 1
    torch.testing.assert_close(module(input_ids=later)[:, :7], module(input_ids=inputs)[:, :7])


@pytest.mark.parametrize("architecture", ["cnn", "vit", "resnet", "mlp"])
def test_batch_mates_do_not_change_the_answer(architecture):
    module, inputs = tiny(architecture).eval(), batch(architecture)
    torch.testing.assert_close(
        module(**inputs)[1], module(pixel_values=inputs["pixel_values"][1:2])[0], atol=1e-6, rtol=1e-5
    )


@pytest.mark.parametrize(
    ("architecture", "values", "field"),
    [
        ("vit", {"patch_size": 3}, "model.patch_size"),
        ("cnn", {"channels": (4, 4, 4, 4)}, "model.channels"),
        ("mlp", {"pretrained": "somewhere"}, "model.pretrained"),
        ("vit", {"patch_size": 2, "pretrained": "/absent/folder"}, "model.pretrained"),
    ],
)
def test_what_does_not_fit_is_refused_with_its_field(architecture, values, field, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(SpecError) as caught:
        tiny(architecture, **values)
    assert caught.value.field == field


def test_text_network_for_images_is_refused():
    config = parse_model_config({"architecture": "bert"})
    with pytest.raises(SpecError, match="takes texts"):
        build_model(config, IMAGE, 3)


def test_pretrained_folder_gives_its_weights(tmp_path):
    source = tiny("vit")
    source.encoder.save_pretrained(tmp_path)
    module = tiny("vit", pretrained=str(tmp_path), hidden_size=32)  # the folder's own width wins
    for name, tensor in source.encoder.state_dict().items():
        assert torch.equal(module.encoder.state_dict()[name], tensor)


def test_pretrained_pickle_is_refused(tmp_path):
    source = tiny("vit")
    source.encoder.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(source.encoder.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(SpecError, match="safetensors"):
        tiny("vit", pretrained=str(tmp_path))


def test_dropout_of_words_only_while_training():
    module, inputs = tiny("text-cnn", word_dropout=0.5, dropout=0.0), batch("text-cnn")
    assert not torch.equal(module(**inputs), module(**inputs))
    module.eval()
    assert torch.equal(module(**inputs), module(**inputs))
