"""Text to text from the command line: pairs to trained, measured and asked; and what is refused before."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from components.models.build import build_model, parse_model_config
from components.models.predictor import load_predictor
from pipelines.cli import main
from tests.components.serve.tiny import tiny_context, tiny_model

WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
PAIRS = [(f"{first} {second}", f"{a} {b}") for a, first in enumerate(WORDS) for b, second in enumerate(WORDS)]
SPEC = {
    "task": "text2text-generation",
    "data": {"source": "a.jsonl", "text": {"vocab_size": 300, "max_length": 8}, "split": {"test": 0.25}},
    "model": {"architecture": "t5", "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "dropout": 0},
    "train": {"max_steps": 90, "validate_every_steps": 90, "global_batch_size": 32, "learning_rate": 1e-2,
              "precision": "fp32"},
    "evaluate": {"resamples": 100},
    "compress": False,
    "register": False,
    "deploy": False,
}  # fmt: skip


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict]:
    capsys.readouterr()
    code = main([*arguments, "--json"])
    return code, json.loads(capsys.readouterr().out)


def write_spec(folder: Path, pairs=PAIRS, **sections) -> str:
    lines = [json.dumps({"source": source, "target": target}) for source, target in pairs]
    (folder / "a.jsonl").write_text("\n".join(lines))
    path = folder / "tiny.yaml"
    path.write_text(json.dumps({**SPEC, **sections}))
    return str(path)


def test_from_pairs_to_an_answer(tmp_path, penstock_home, capsys):
    code, result = run(capsys, "run", write_spec(tmp_path), "--debug")
    assert code == 0, result
    validation, test = (result["model"]["metrics"][name] for name in ("validation", "test"))
    assert set(validation) == {"loss", "perplexity", "accuracy", "exact_match"}
    assert set(test) == {"loss", "perplexity", "exact_match", "bleu", "rouge1", "rouge2", "rougeL"}
    # Pairs of digits that no training row had: the digits were learnt, not the rows.
    assert test["exact_match"] >= 0.3 > 0.1 >= result["baseline"]["metrics"]["test"]["exact_match"]
    assert result["gate"] is None and result["compressed"] is None
    code, answer = run(capsys, "predict", result["run_id"], "--input", "four two", "--num-beams", "2")
    assert code == 0 and set(answer["predictions"][0]) == {"text"}
    assert set(answer["predictions"][0]["text"]) <= set("0123456789 ")
    code, refused = run(capsys, "serve", result["run_id"])
    assert code == 2 and "text2text-generation model, which no endpoint serves" in refused["error"]["message"]


@pytest.mark.parametrize(
    ("pairs", "sections", "field", "sentence"),
    [
        (PAIRS, {"data": {**SPEC["data"], "columns": {"target": "answer"}}}, "data.columns.target",
         "The column 'answer' is missing"),
        ([*PAIRS, *[(f"more {number}", " ") for number in range(5)]], {}, "data.max_corrupt",
         "row 101: its target is empty (target)"),
        ([*PAIRS, *[(f"more {number}", 7) for number in range(5)]], {}, "data.max_corrupt",
         "row 101: `target` is a int, not a text"),
        (PAIRS[:2], {}, "data.split", "The split by random leaves no row in train, for there are 2 in all"),
        (PAIRS, {"data": {**SPEC["data"], "text": {"vocab_size": 300, "max_target_length": 2}}},
         "data.text.max_target_length", "targets of the train split are longer than 2 tokens"),
        (PAIRS, {"compress": {}}, "compress", "compress is not available for text2text-generation"),
        (PAIRS, {"task": "text-generation", "model": {"architecture": "gpt"}, "evaluate": {"num_beams": 2},
                 "data": {"source": "a.jsonl"}},
         "evaluate.num_beams", "is for text2text-generation"),
        (PAIRS, {"train": {"seq_len": 8}}, "train.seq_len", "train.seq_len is for language models"),
        (PAIRS, {"model": {"architecture": "gpt"}}, "model.architecture", "allowed: t5"),
        (PAIRS, {"model": {"architecture": "t5", "hidden_size": 30}}, "model", "does not divide"),
        (PAIRS, {"task": "text-classification", "model": {"architecture": "bert"},
                 "data": {**SPEC["data"], "text": {"max_target_length": 8}}},
         "data.text.max_target_length", "is for text2text-generation"),
    ],
)  # fmt: skip
def test_what_cannot_be_learnt_is_refused(tmp_path, penstock_home, capsys, pairs, sections, field, sentence):
    code, result = run(capsys, "run", write_spec(tmp_path, pairs, **sections), "--debug")
    assert code == 2, result
    assert result["error"]["field"] == field
    assert sentence in result["error"]["message"]


def write_pretrained(folder: Path) -> None:
    """A T5 with its tokenizer as `transformers` writes them: words, and a template that ends every text by itself."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

    words = ["<pad>", "</s>", "<unk>", *(f"\u2581{word}" for word in [*WORDS, *"0123456789"])]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    tokenizer.add_special_tokens([AddedToken(word, special=True) for word in words[:3]])
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer.enable_padding(length=12)
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"eos_token": "</s>", "pad_token": {"content": "<pad>", "special": True}}
    (folder / "tokenizer_config.json").write_text(json.dumps(names))
    inputs = {"vocab_size": 32, "max_length": 8, "max_target_length": 8, "pad_token_id": 0, "eos_token_id": 1}
    module = build_model(parse_model_config(SPEC["model"]), inputs, 0)
    module.encoder_decoder.save_pretrained(folder)


def test_a_pretrained_network_reads_and_writes_its_own_tokens(tmp_path, penstock_home, capsys):
    write_pretrained(tmp_path / "t5")
    text = {"max_length": 8, "tokenizer": "t5"}
    spec = write_spec(tmp_path, data={**SPEC["data"], "text": text}, model={"architecture": "t5", "pretrained": "t5"},
                      train={**SPEC["train"], "max_steps": 2})  # fmt: skip
    code, result = run(capsys, "run", spec, "--debug")
    assert code == 0, result
    folder = Path(result["model"]["uri"].removeprefix("file://"))
    assert str(tmp_path) not in (folder / "preprocess" / "preprocessing.json").read_text()
    preprocessing = load_predictor(folder).preprocessing
    assert preprocessing.encode({"source": ["four two"], "target": ["4 2"]}) == {"input_ids": [[7, 5, 1]],
                                                                                "labels": [[17, 15, 1]]}  # fmt: skip
    assert preprocessing.decode([17, 15, 1, 0]) == "4 2"
    code, refused = run(capsys, "check", spec, "--set", "data.text.tokenizer=bpe")
    assert code == 2 and "whose weights know its own tokens alone" in refused["error"]["message"]
    code, refused = run(capsys, "check", spec, "--set", "data.text.tokenizer=bpee")
    assert code == 2 and "none of bpe, byte, character, and no folder" in refused["error"]["message"]


def test_options_of_another_task_are_refused(tmp_path, penstock_home, capsys):
    model = tiny_model(tmp_path / "model", tiny_context(tmp_path), text=True)
    code, result = run(capsys, "predict", str(model.path), "--input", "a text", "--temperature", "0.5")
    assert code == 2 and result["error"]["field"] == "temperature"
    code, result = run(capsys, "predict", "http://127.0.0.1:9", "--input", "a text", "--num-beams", "2")
    assert code == 2 and "which no endpoint serves" in result["error"]["message"]
