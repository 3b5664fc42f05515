"""Runs a model folder: torch for `model.safetensors`, ONNX Runtime for `model.onnx`.

predictor = load_predictor(folder)
logits = predictor.logits(predictor.preprocessing.collate(predictor.preprocessing.encode(rows)))
answers = get_task(predictor.task).answer(predictor, rows, {})
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.errors import ArtifactError
from components.models.folder import WEIGHTS_NAME, load_model_folder, load_preprocessing, read_model_values

if TYPE_CHECKING:
    import numpy as np

    from components.tasks.base import Preprocessing

ONNX_NAME = "model.onnx"


class Predictor(ABC):
    """A network ready to answer.

    Attributes:
        task: Name of its task.
        classes: Names of the columns of the logits.
        preprocessing: The fitted way from a raw row to its inputs.
        values: The parsed `config.json`.
    """

    def __init__(self, folder: Path, values: Mapping[str, Any]) -> None:
        self.values = dict(values)
        self.task: str = values["task"]
        self.classes: tuple[str, ...] = tuple(values["classes"])
        self.preprocessing: Preprocessing = load_preprocessing(folder, values)

    @abstractmethod
    def logits(self, batch: Mapping[str, np.ndarray]) -> np.ndarray:
        """Logits, float32, shape (B, classes), of collated model inputs."""


class TorchPredictor(Predictor):
    """Runs safetensors weights in torch.

    Args:
        threads: Cores for one batch. Torch has one pool a process: the last predictor's number holds for all.
    """

    def __init__(self, folder: Path, threads: int) -> None:
        import torch

        torch.set_num_threads(threads)
        self.module, values = load_model_folder(folder)
        super().__init__(folder, values)

    def logits(self, batch: Mapping[str, np.ndarray]) -> np.ndarray:
        import torch

        with torch.inference_mode():
            return self.module(**{name: torch.as_tensor(array) for name, array in batch.items()}).float().numpy()


class OnnxPredictor(Predictor):
    """Runs a graph in ONNX Runtime on the CPU."""

    def __init__(self, folder: Path, threads: int) -> None:
        super().__init__(folder, read_model_values(folder))
        self.session = open_session(folder / ONNX_NAME, threads)
        self.input_names = [tensor.name for tensor in self.session.get_inputs()]

    def logits(self, batch: Mapping[str, np.ndarray]) -> np.ndarray:
        return self.session.run(None, {name: batch[name] for name in self.input_names})[0]


def open_session(path: Path, threads: int) -> Any:
    """An ONNX Runtime session with `threads` cores a batch, and one batch at a time."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def load_predictor(folder: Path, threads: int = 1) -> Predictor:
    """Opens a model folder.

    Args:
        folder: The local folder of a verified `model` artifact.
        threads: Cores that one batch may use.

    Raises:
        ArtifactError: If the folder holds neither an ONNX graph nor safetensors weights, or they cannot be loaded.
    """
    if (folder / ONNX_NAME).is_file():
        return OnnxPredictor(folder, threads)
    if (folder / WEIGHTS_NAME).is_file():
        return TorchPredictor(folder, threads)
    raise ArtifactError(f"{folder} holds neither {ONNX_NAME} nor {WEIGHTS_NAME}; name the folder of a model.")
