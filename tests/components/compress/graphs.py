"""Small ONNX graphs for tests, exported from networks with random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

IMAGE = {"image_size": 8, "channels": 1}
TEXT = {"vocab_size": 300, "max_length": 16, "pad_token_id": 0}
TEXT_NETWORKS = ("bert", "text-cnn", "lstm", "gru")


def make_network(architecture: str, **parameters: Any) -> Any:
    import torch

    from components.models.build import build_model, parse_model_config

    torch.set_num_threads(1)
    torch.manual_seed(0)
    inputs = TEXT if architecture in TEXT_NETWORKS else IMAGE
    return build_model(parse_model_config({"architecture": architecture, **parameters}), inputs, 4).eval()


def make_batch(architecture: str, rows: int, length: int = 9) -> dict[str, Any]:
    """Random model inputs; texts of uneven lengths."""
    import numpy as np

    generator = np.random.default_rng(rows + length)
    if architecture not in TEXT_NETWORKS:
        return {"pixel_values": generator.standard_normal((rows, 1, 8, 8)).astype(np.float32)}
    mask = (np.arange(length) < generator.integers(1, length + 1, (rows, 1))).astype(np.int64)
    return {"input_ids": generator.integers(1, 300, (rows, length)) * mask, "attention_mask": mask}


def torch_logits(network: Any, batch: dict[str, Any]) -> Any:
    import torch

    with torch.no_grad():
        return network(**{name: torch.as_tensor(array) for name, array in batch.items()}).numpy()


def export_network(architecture: str, path: Path, **parameters: Any) -> Any:
    """Writes the float32 graph of a network and returns the network."""
    from components.compress.export import export_onnx

    network = make_network(architecture, **parameters)
    export_onnx(network, make_batch(architecture, 2), path)
    return network


if __name__ == "__main__":
    import sys

    export_network(sys.argv[1], Path(sys.argv[2]))
