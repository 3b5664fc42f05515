"""Every architecture builds, is blind to padding, and can be exported with a free batch."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file

from components.errors import SpecError
from components.models.build import build_model, parse_model_config
from components.models.config import ARCHITECTURES
from components.models.folder import load_weights, named_weights, save_weights
from components.models.transformer import network_values

IMAGE = {"image_size": 8, "channels": 1}
TEXT = {"vocab_size": 50, "max_length": 12, "pad_token_id": 0}
TEXT_ARCHITECTURES = ("bert", "text-cnn", "lstm", "gru")
DECODERS = ("gpt", "llama")
PAIRS = {**TEXT, "max_target_length": 6, "eos_token_id": 1}


def tiny(architecture, **values):
    sizes: dict = {name: {"hidden_size": 16} for name in ("vit", "bert", "t5", *DECODERS)}
    sizes["vit"]["patch_size"] = 2
    config = parse_model_config({"architecture": architecture, **sizes.get(architecture, {}), **values})
    torch.manual_seed(0)
    texts = PAIRS if architecture == "t5" else TEXT
    return build_model(config, texts if architecture in (*TEXT_ARCHITECTURES, *DECODERS, "t5") else IMAGE, 3)


def batch(architecture):
    generator = torch.Generator().manual_seed(1)
    if architecture in DECODERS:
        return {"input_ids": torch.randint(0, 50, (3, 12), generator=generator)}
    if architecture not in (*TEXT_ARCHITECTURES, "t5"):
        return {"pixel_values": torch.randn(3, 1, 8, 8, generator=generator)}
    input_ids = torch.randint(1, 50, (3, 12), generator=generator)
    attention_mask = torch.ones_like(input_ids)
    attention_mask[1, 7:], input_ids[1, 7:] = 0, 0
    inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
    if architecture == "t5":
        inputs["decoder_input_ids"] = torch.randint(2, 50, (3, 6), generator=generator)
    return inputs


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_gradient_reaches_every_parameter(architecture):
    module = tiny(architecture)
    logits = module(**batch(architecture))
    assert logits.shape == {**dict.fromkeys(DECODERS, (3, 12, 50)), "t5": (3, 6, 50)}.get(architecture, (3, 3))
    logits.pow(2).sum().backward()
    assert [name for name, value in module.named_parameters() if value.grad is None] == []


@pytest.mark.parametrize(("architecture", "blocks"), [("vit", 1), ("bert", 1), ("gpt", 1), ("llama", 1), ("t5", 3)])
def test_attention_is_torchs_fused_one(architecture, blocks, monkeypatch):
    """A layer of T5 is one of the encoder, and one of the decoder with two attentions."""
    kernel, calls = torch.nn.functional.scaled_dot_product_attention, []
    count = lambda *values, **options: (calls.append(1), kernel(*values, **options))[1]  # noqa: E731
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", count)
    tiny(architecture, num_hidden_layers=2)(**batch(architecture))
    assert len(calls) == 2 * blocks


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


def test_t5_sees_the_whole_source_and_no_padding():
    module, inputs = tiny("t5").eval(), batch("t5")
    together = module(**inputs)[1]
    alone = {name: tensor[1:2, :7] for name, tensor in inputs.items()}
    torch.testing.assert_close(module(**alone)[0], together, atol=1e-5, rtol=1e-5)  # fp32 sums in another order
    shorter = {**alone, "input_ids": alone["input_ids"][:, :6], "attention_mask": alone["attention_mask"][:, :6]}
    assert not torch.allclose(module(**shorter)[0, 0], together[0], atol=1e-3)


def test_t5_does_not_see_what_follows_in_the_target():
    module, inputs = tiny("t5").eval(), batch("t5")
    later = inputs["decoder_input_ids"].clone()
    later[:, 4:] = 1
    torch.testing.assert_close(module(**{**inputs, "decoder_input_ids": later})[:, :4], module(**inputs)[:, :4])


def test_a_pretrained_t5_gives_its_weights_and_refuses_more_words_than_it_knows(tmp_path):
    source = tiny("t5", num_decoder_layers=1, feed_forward_proj="gated-gelu")
    source.encoder_decoder.save_pretrained(tmp_path)
    module = tiny("t5", pretrained=str(tmp_path), hidden_size=32)  # the folder's own width wins
    assert {name: tensor.shape for name, tensor in module.state_dict().items()} == {
        name: tensor.shape for name, tensor in source.state_dict().items()
    }
    assert torch.equal(module.eval()(**batch("t5")), source.eval()(**batch("t5")))
    config = parse_model_config({"architecture": "t5", "pretrained": str(tmp_path)})
    with pytest.raises(SpecError, match="knows 50 tokens, but the data's tokenizer has 60"):
        build_model(config, {**PAIRS, "vocab_size": 60}, 0)


def test_an_output_layer_of_its_own_survives_the_folder(tmp_path):
    """T5 1.1 does not share it with the words, whatever its config says."""
    tiny("t5", feed_forward_proj="gated-gelu").encoder_decoder.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights["lm_head.weight"] = torch.randn(50, 16)
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    config = parse_model_config({"architecture": "t5", "pretrained": str(tmp_path)})
    module = build_model(config, PAIRS, 0).eval()
    again = build_model(config, PAIRS, 0, network_values(module)).eval()
    save_weights(tmp_path / "ours.safetensors", named_weights(module))
    load_weights(again, tmp_path / "ours.safetensors")
    assert torch.equal(again.encoder_decoder.lm_head.weight, weights["lm_head.weight"])
    assert torch.equal(again(**batch("t5")), module(**batch("t5")))


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


@pytest.mark.parametrize(("architecture", "inputs"), [("bert", IMAGE), ("t5", TEXT)])
def test_a_network_for_other_data_is_refused(architecture, inputs):
    config = parse_model_config({"architecture": architecture})
    with pytest.raises(SpecError, match=r"which takes (texts|pairs of texts)"):
        build_model(config, inputs, 3)


def test_pretrained_folder_gives_its_weights(tmp_path):
    source = tiny("vit")
    source.encoder.save_pretrained(tmp_path)
    module = tiny("vit", pretrained=str(tmp_path), hidden_size=32)  # the folder's own width wins
    for name, tensor in source.encoder.state_dict().items():
        assert torch.equal(module.encoder.state_dict()[name], tensor)


def test_word_vectors_of_a_pretrained_bert_are_drawn_anew_for_the_data_s_own_words(tmp_path):
    source = tiny("bert")
    source.encoder.save_pretrained(tmp_path)
    ours, theirs = tiny("bert", pretrained=str(tmp_path)).encoder.state_dict(), source.encoder.state_dict()
    differing = {name for name, tensor in theirs.items() if not torch.equal(tensor, ours[name])}
    assert differing == {"embeddings.word_embeddings.weight"}  # of as many words, but others


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
