"""The two ways a client asks: the Open Inference Protocol (v2) for programs, `/v1/predict` for people.

Source: https://github.com/kserve/open-inference-protocol (REST, version 2).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from components.errors import RequestError

if TYPE_CHECKING:
    import numpy as np

    from components.tasks.classification import ClassPreprocessing

OUTPUTS = ("logits", "probabilities", "label")


@dataclass(frozen=True)
class ModelIdentity:
    """Which model an endpoint answers with."""

    name: str
    version: str
    digest: str

    def as_dict(self) -> dict[str, str]:
        return {"name": self.name, "version": self.version, "digest": self.digest}


def model_metadata(identity: ModelIdentity, preprocessing: ClassPreprocessing) -> dict[str, Any]:
    """The answer to `GET /v2/models/NAME`: the protocol's fields, and the digest of the model."""
    classes = len(preprocessing.classes)
    return {
        **identity.as_dict(),
        "versions": [identity.version],
        "platform": "penstock",
        "inputs": preprocessing.signature(),
        "outputs": [
            {"name": "logits", "datatype": "FP32", "shape": [-1, classes]},
            {"name": "probabilities", "datatype": "FP32", "shape": [-1, classes]},
            {"name": "label", "datatype": "BYTES", "shape": [-1]},
        ],
    }


def requested_outputs(body: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of the outputs that a v2 request wants; all, if it names none."""
    wanted = body.get("outputs")
    if wanted is None:
        return OUTPUTS
    if not isinstance(wanted, list) or not all(isinstance(item, dict) for item in wanted):
        raise RequestError("outputs must be a list of objects with a name.")
    names = tuple(item.get("name") for item in wanted)
    unknown = [name for name in names if name not in OUTPUTS]
    if unknown:
        raise RequestError(f"There is no output {str(unknown[0])[:40]!r}; the outputs are {', '.join(OUTPUTS)}.")
    return names


def tensor_inputs(body: Mapping[str, Any], signature: Sequence[Mapping[str, Any]]) -> list[Any]:
    """What `/v1/predict` would hold as `inputs`, from the tensor of a v2 request, one item a row.

    Raises:
        RequestError: If the tensor is absent, or its datatype, shape or data do not fit the signature.
    """
    [expected] = signature
    tensors = body.get("inputs")
    if not isinstance(tensors, list) or len(tensors) != 1 or not isinstance(tensors[0], dict):
        raise RequestError(f"inputs must be a list with the one tensor {expected['name']!r}.")
    tensor = tensors[0]
    for key in ("name", "datatype"):
        if tensor.get(key) != expected[key]:
            raise RequestError(f"The input's {key} is {str(tensor.get(key))[:40]!r}; it must be {expected[key]!r}.")
    shape = checked_shape(tensor.get("shape"), expected["shape"])
    if expected["datatype"] == "BYTES":
        return checked_strings(tensor.get("data"), shape)
    return checked_numbers(tensor.get("data"), shape)


def checked_shape(shape: Any, expected: Sequence[int]) -> list[int]:
    """The shape of a request's tensor; -1 in `expected` stands for any number from 1."""
    fits = (
        isinstance(shape, list)
        and len(shape) == len(expected)
        and all(type(size) is int and size >= 1 for size in shape)
        and all(want in (-1, size) for size, want in zip(shape, expected, strict=True))
    )
    if not fits:
        raise RequestError(f"The input's shape is {str(shape)[:60]}; it must be {list(expected)} (-1 is any number).")
    return shape


def checked_strings(data: Any, shape: Sequence[int]) -> list[str]:
    """The strings of a BYTES tensor of shape (rows,)."""
    if not isinstance(data, list) or not all(isinstance(item, str) for item in data):
        raise RequestError("The data of a BYTES input must be a list of strings.")
    if [len(data)] != list(shape):
        raise RequestError(f"The input's data holds {len(data)} strings, its shape says {list(shape)}.")
    return data


def checked_numbers(data: Any, shape: Sequence[int]) -> list[Any]:
    """The rows of a numeric tensor as nested lists; `data` may be flat or nested."""
    import numpy as np

    try:
        array = np.asarray(data, dtype=np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise RequestError("The input's data must be numbers, flat or nested as its shape says.") from error
    if array.size != int(np.prod(shape)) or (array.ndim > 1 and array.shape != tuple(shape)):
        raise RequestError(f"The input's data has shape {list(array.shape)}, its shape says {list(shape)}.")
    if not np.isfinite(array).all():
        raise RequestError("The input's data holds a number that is not finite.")
    return array.reshape(shape).tolist()


def infer_response(
    body: Mapping[str, Any], identity: ModelIdentity, preprocessing: ClassPreprocessing, logits: np.ndarray
) -> dict[str, Any]:
    """The answer to a v2 request whose rows gave `logits` (B, classes)."""
    rows, classes = logits.shape
    outputs = []
    for name in requested_outputs(body):
        if name == "label":
            labels = [prediction["label"] for prediction in preprocessing.predictions(logits)]
            outputs.append({"name": name, "datatype": "BYTES", "shape": [rows], "data": labels})
            continue
        values = logits if name == "logits" else probabilities(logits)
        data = values.astype("float32").ravel().tolist()
        outputs.append({"name": name, "datatype": "FP32", "shape": [rows, classes], "data": data})
    answer: dict[str, Any] = {"model_name": identity.name, "model_version": identity.version, "outputs": outputs}
    if isinstance(body.get("id"), str):
        answer["id"] = body["id"]
    return answer


def probabilities(logits: np.ndarray) -> np.ndarray:
    """Softmax over the classes, shape (B, classes)."""
    import numpy as np

    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    return shifted / shifted.sum(axis=1, keepdims=True)


def predict_inputs(body: Mapping[str, Any]) -> list[Any]:
    """The `inputs` of a `/v1/predict` request."""
    inputs = body.get("inputs")
    if not isinstance(inputs, list) or not inputs:
        raise RequestError('The body must hold "inputs", a list with at least one item.')
    unknown = sorted(set(body) - {"inputs"})
    if unknown:
        raise RequestError(f"There is no field {unknown[0][:40]!r}; the body holds `inputs` alone.")
    return inputs
