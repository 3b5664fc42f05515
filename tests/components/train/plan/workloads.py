"""Small and very large networks to plan for."""

from __future__ import annotations

from typing import Any

from components.models.build import parse_model_config
from components.train.plan.network import Workload

BLOCKS = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "dropout": 0.0}
INPUTS: dict[str, dict[str, int]] = {
    "image-classification": {"image_size": 8, "channels": 1},
    "text-classification": {"vocab_size": 500, "max_length": 32, "pad_token_id": 0},
    "text-generation": {"vocab_size": 500, "max_length": 64},
    "text2text-generation": {
        "vocab_size": 500,
        "max_length": 32,
        "max_target_length": 16,
        "pad_token_id": 0,
        "eos_token_id": 1,
    },
}
TASKS = {"bert": "text-classification", "lstm": "text-classification", "gpt": "text-generation",
         "llama": "text-generation", "t5": "text2text-generation"}  # fmt: skip


def make_workload(architecture: str, **model: Any) -> Workload:
    """A small network of an architecture; a Transformer has two layers unless told otherwise."""
    task = TASKS.get(architecture, "image-classification")
    blocks = BLOCKS if architecture in ("bert", "gpt", "llama", "t5", "vit") else {}
    config = parse_model_config({"architecture": architecture, **blocks, **model})
    return Workload(task, config, INPUTS[task], 10 if task.endswith("classification") else 0)


def llama_70b() -> Workload:
    """Llama 3 70B: the shape that its model card names."""
    config = parse_model_config({
        "architecture": "llama", "hidden_size": 8192, "num_hidden_layers": 80, "num_attention_heads": 64,
        "num_key_value_heads": 8, "intermediate_size": 28672,
    })  # fmt: skip
    return Workload("text-generation", config, {"vocab_size": 128_256, "max_length": 4096}, 0)
