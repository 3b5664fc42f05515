"""A trained network as a folder: safetensors weights, `config.json` and the fitted preprocessing. No pickle.

model.safetensors   config.json {"task", "architecture", "inputs", "classes"}   preprocess/
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.errors import ArtifactError
from components.models.build import build_model, parse_model_config
from components.models.config import ModelConfig

if TYPE_CHECKING:
    import torch
    from torch import nn

    from components.tasks.base import Preprocessing

WEIGHTS_NAME = "model.safetensors"
CONFIG_NAME = "config.json"
PREPROCESS_NAME = "preprocess"


def model_values(
    task: str,
    config: ModelConfig,
    inputs: Mapping[str, int],
    classes: Sequence[str],
    module: nn.Module | None = None,
) -> dict[str, Any]:
    """What `config.json` holds; `pretrained` and `lora` are left out: the weights are in the folder, adapters merged.

    A network that began as a pretrained one also keeps its full `transformers` config, which wins over our fields.
    """
    values: dict[str, Any] = {
        "task": task,
        "architecture": config.model_dump(mode="json", exclude={"pretrained", "lora"}),
        "inputs": dict(inputs),
        "classes": list(classes),
    }
    if config.pretrained is not None:
        from components.models.transformer import network_values

        assert module is not None, "a pretrained network keeps its own shape"
        values["network"] = network_values(module)
    return values


def save_model_folder(
    folder: Path, values: Mapping[str, Any], preprocessing: Preprocessing, weights: Mapping[str, torch.Tensor] | None
) -> None:
    """Writes a model folder; equal values and weights give equal bytes.

    Args:
        folder: Made if absent.
        values: What `model_values` gave, plus whatever the writer adds (`method` of a compressed model).
        preprocessing: The fitted preprocessing.
        weights: State dict, or None when the caller puts the weights there itself (`model.onnx`).
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG_NAME).write_text(json.dumps(values, indent=1, sort_keys=True))
    (folder / PREPROCESS_NAME).mkdir(exist_ok=True)
    preprocessing.save(folder / PREPROCESS_NAME)
    if weights is not None:
        save_weights(folder / WEIGHTS_NAME, weights)


def save_weights(path: Path, weights: Mapping[str, torch.Tensor]) -> None:
    """Writes a state dict as safetensors.

    Raises:
        OSError: If it cannot be written; safetensors tells the system's error only in its text.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}, path)
    except SafetensorError as error:
        number = re.search(r"\(os error (\d+)\)", str(error))
        if number is None:
            raise
        raise OSError(int(number.group(1)), os.strerror(int(number.group(1))), str(path)) from error


def stream_weights(path: Path, shapes: Mapping[str, tuple[int, ...]], weights: Iterable[torch.Tensor]) -> None:
    """Writes float32 tensors as safetensors while only one of them need be there.

    Args:
        shapes: By name.
        weights: One for each of these, in their order.
    """
    header, end = {}, 0
    for name, shape in shapes.items():
        begin, end = end, end + 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of 8
    with path.open("wb") as handle:
        handle.write(len(text).to_bytes(8, "little") + text)
        for tensor in weights:
            handle.write(tensor.detach().float().cpu().contiguous().numpy().data)


def named_weights(module: nn.Module) -> dict[str, torch.Tensor]:
    """The state dict, each tensor once: of tied ones (embedding and output layer) only the first name."""
    return {name: tensor.detach() for name, tensor in named_tensors(module).items()}


def named_tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    """The same as the very parameters and buffers."""
    found: dict[str, torch.Tensor] = {}
    seen: set[int] = set()
    for name, tensor in module.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            found[name] = tensor
    return found


def load_weights(module: nn.Module, path: Path) -> None:
    """Loads what `named_weights` gave.

    Raises:
        RuntimeError: If a tensor is absent, left over or of another shape.
        OSError, SafetensorError: If the file cannot be read.
    """
    from safetensors.torch import load_file

    weights = load_file(path)
    absent = set(named_weights(module)) - set(weights)
    if absent:
        raise RuntimeError(f"{len(absent)} tensors are absent, among them {min(absent)}")
    left_over = module.load_state_dict(weights, strict=False).unexpected_keys
    if left_over:
        raise RuntimeError(f"{len(left_over)} tensors fit nowhere, among them {left_over[0]}")


def read_model_values(folder: Path) -> dict[str, Any]:
    """The parsed `config.json` of a model folder.

    Raises:
        ArtifactError: If it is absent or no model's config.
    """
    try:
        values = json.loads((folder / CONFIG_NAME).read_text())
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{folder} is no model folder: it has no readable {CONFIG_NAME} ({error}).") from error
    missing = {"task", "architecture", "inputs", "classes"} - set(values)
    if missing:
        raise ArtifactError(f"{folder / CONFIG_NAME} lacks {', '.join(sorted(missing))}; train the model again.")
    return values


def load_model_folder(folder: Path) -> tuple[nn.Module, dict[str, Any]]:
    """Loads a trained network in evaluation mode.

    Returns:
        The module and the parsed `config.json`.

    Raises:
        ArtifactError: If a file is absent or the weights do not fit the config.
    """
    from safetensors import SafetensorError

    values = read_model_values(folder)
    module = build_from_values(values)
    try:
        load_weights(module, folder / WEIGHTS_NAME)
    except (OSError, SafetensorError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise ArtifactError(f"{folder / WEIGHTS_NAME} cannot be loaded into the network ({reason}).") from error
    return module.eval(), values


def build_from_values(values: Mapping[str, Any]) -> nn.Module:
    """The network of a parsed `config.json`, with random weights."""
    config = parse_model_config(values["architecture"])
    return build_model(config, values["inputs"], len(values["classes"]), values.get("network"))


def count_parameters(module: nn.Module) -> int:
    """Number of trainable values."""
    return sum(elements(parameter) for parameter in module.parameters() if parameter.requires_grad)


def elements(parameter: nn.Parameter) -> int:
    """Of a parameter as a whole, also where ZeRO-3 left a shard of it here."""
    return getattr(parameter, "ds_numel", parameter.numel())


def load_preprocessing(folder: Path, values: Mapping[str, Any]) -> Preprocessing:
    """The preprocessing that travels with a model."""
    from components.tasks import get_task

    return get_task(values["task"]).load(folder / PREPROCESS_NAME)
