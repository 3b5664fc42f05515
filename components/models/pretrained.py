"""What can be said of `model.pretrained` from its config.json, before any weight is read. Light."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from components.errors import SpecError
from components.models.config import ModelConfig
from components.tasks.tokenizers import TOKENIZER_NAME, pretrained_file, pretrained_vocabulary

MODEL_TYPES = {"vit": "vit", "resnet": "resnet", "bert": "bert", "gpt": "gpt2", "llama": "llama", "t5": "t5"}
"""What `transformers` calls our architectures."""
WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
LONGEST = {"gpt": "n_positions", "bert": "max_position_embeddings"}
"""Where an architecture learns a vector for each position, how many there are."""


def pretrained_error(source: str) -> SpecError:
    return SpecError(
        f"model.pretrained is {source!r}, which is no folder and no reachable hub name with a config.json and "
        "safetensors weights; name one, or leave it out to start from random weights.",
        field="model.pretrained",
    )


def check_pretrained(model: ModelConfig, longest: int | None = None) -> SpecError | None:
    """Why the weights that `model.pretrained` names cannot be those of this architecture; None if they can.

    Args:
        longest: Tokens of the longest sequence, if it takes texts.
    """
    source = model.pretrained
    if source is None:
        return None
    if model.architecture not in MODEL_TYPES:
        return SpecError(
            f"model.pretrained is {source!r}, but {model.architecture} has no pretrained form; take one of "
            f"{', '.join(MODEL_TYPES)}, or leave it out.",
            "model.pretrained",
        )
    values = read_config(source)
    if values is None or (Path(source).is_dir() and not any((Path(source) / name).exists() for name in WEIGHTS)):
        return pretrained_error(source)
    return _other_architecture(model, values) or _too_short(model, values, longest)


def read_config(source: str) -> dict[str, Any] | None:
    """config.json of a folder or hub name, or None if there is none that can be read."""
    try:
        values = json.loads(pretrained_file(source, "config.json").read_text())
    except Exception:  # noqa: BLE001 (the hub raises several kinds; all mean the same to the user)
        return None
    return values if isinstance(values, dict) else None


def _other_architecture(model: ModelConfig, values: dict[str, Any]) -> SpecError | None:
    found = values.get("model_type")
    if found == MODEL_TYPES[model.architecture]:
        return None
    ours = next((name for name, theirs in MODEL_TYPES.items() if theirs == found), None)
    way = f"set model.architecture to {ours}, or name a {model.architecture} network" if ours else (
        f"name a {model.architecture} network"
    )  # fmt: skip
    return SpecError(
        f"model.pretrained {model.pretrained!r} holds a network of the type {found or 'unknown'}, but "
        f"model.architecture is {model.architecture}; {way}.",
        "model.pretrained",
    )


def _too_short(model: ModelConfig, values: dict[str, Any], longest: int | None) -> SpecError | None:
    positions = values.get(LONGEST.get(model.architecture, ""))
    if positions is None or longest is None or longest <= positions:
        return None
    field = "data.text.max_length" if model.architecture == "bert" else "train.seq_len"
    return SpecError(
        f"{field} is {longest}, but the network of model.pretrained {model.pretrained!r} knows {positions} positions; "
        f"set {field} to {positions} or less.",
        field,
    )


def check_tokenizer(model: ModelConfig, tokenizer: str) -> SpecError | None:
    """Why `data.text.tokenizer` is not that of the network whose weights are taken; None if it is.

    Args:
        tokenizer: A folder or hub name, not one of the tokenizers that are made here.
    """
    source = model.pretrained
    if source is None or tokenizer == source:
        return None
    theirs = pretrained_vocabulary(tokenizer).tokenizer.get_vocab(with_added_tokens=False)
    if not _has_tokenizer(source):
        known = (read_config(source) or {}).get("vocab_size")
        fits = known is None or len(theirs) <= known
    else:
        fits = theirs == pretrained_vocabulary(source).tokenizer.get_vocab(with_added_tokens=False)
    if fits:
        return None
    return SpecError(
        f"data.text.tokenizer is that of {tokenizer!r}, whose tokens are others than those that the weights of "
        f"model.pretrained {source!r} know; set it to {source!r}.",
        "data.text.tokenizer",
    )


def _has_tokenizer(source: str) -> bool:
    try:
        return pretrained_file(source, TOKENIZER_NAME).exists()
    except Exception:  # noqa: BLE001 (as above)
        return False
