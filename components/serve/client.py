"""Asking a model: an endpoint over HTTP, or a model's folder in this process."""

from __future__ import annotations

import json
import os
import shlex
import urllib.error
import urllib.request
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from components.artifacts import Ref
from components.errors import RequestError, SpecError, StageError, UnavailableError
from components.serve.keys import VARIABLE
from components.tasks import get_task

TIMEOUT_S = 60.0


def api_key_header(api_key: str | None = None) -> dict[str, str]:
    """The `Authorization` header of `api_key`, or of the first key in PENSTOCK_API_KEYS_FILE; empty without one."""
    if api_key is None and os.environ.get(VARIABLE):
        try:
            lines = Path(os.environ[VARIABLE]).read_text().splitlines()
        except OSError as error:
            raise SpecError(f"{VARIABLE} names a file that cannot be read ({error.strerror}).") from error
        api_key = next((line.strip() for line in lines if line.strip() and not line.startswith("#")), None)
    return {"Authorization": f"Bearer {api_key}"} if api_key else {}


def predict(
    url: str, inputs: Sequence[Any] = (), files: Sequence[Path] = (), api_key: str | None = None
) -> dict[str, Any]:
    """Asks an endpoint's `/v1/predict`.

    Args:
        url: Root of the endpoint.
        inputs: JSON values, one a prediction, sent in one request.
        files: Files to upload instead, one a request.

    Returns:
        {"predictions": [...], "model": {"name", "version", "digest"}}, files behind inputs.

    Raises:
        RequestError: If the endpoint refuses the inputs (4xx).
        UnavailableError: If nothing answers at `url`, or it is overloaded.
    """
    answers = [_post(url, json.dumps({"inputs": list(inputs)}).encode(), "application/json", api_key)] if inputs else []
    for path in files:
        content, content_type = _multipart(path)
        answers.append(_post(url, content, content_type, api_key))
    if not answers:
        raise SpecError("There is nothing to predict; give --input or a file.")
    return {"predictions": [item for answer in answers for item in answer["predictions"]], "model": answers[0]["model"]}


def _post(url: str, content: bytes, content_type: str, api_key: str | None) -> dict[str, Any]:
    if not url.startswith(("http://", "https://")):
        raise SpecError(f"{url!r} is no endpoint; give a URL that begins with http:// or https://.")
    headers = {"Content-Type": content_type, **api_key_header(api_key)}
    request = urllib.request.Request(f"{url.rstrip('/')}/v1/predict", data=content, headers=headers)
    # No redirect is followed and no proxy asked: the key and the inputs go to the named endpoint alone.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), _NoRedirect)
    try:
        with opener.open(request, timeout=TIMEOUT_S) as answer:
            return json.loads(answer.read())
    except urllib.error.HTTPError as error:
        raise _refusal(url, error) from error
    except (urllib.error.URLError, OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise UnavailableError(f"No endpoint answers at {url} ({reason}); deploy one with `penstock run`.") from error


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


def _refusal(url: str, error: urllib.error.HTTPError) -> Exception:
    """The error that an HTTP status stands for."""
    try:
        message = json.loads(error.read(1 << 16))["error"]
    except (ValueError, KeyError, TypeError, OSError):
        message = error.reason
    if error.code in (429, 503):
        return UnavailableError(f"The endpoint at {url} is overloaded; try again in a moment.")
    if 400 <= error.code < 500:
        return RequestError(f"The endpoint refused the request ({error.code}): {message}")
    return StageError(f"The endpoint at {url} failed to answer ({error.code}): {message}")


def _multipart(path: Path) -> tuple[bytes, str]:
    """The body and content type that upload `path` as the part `file`."""
    boundary = uuid.uuid4().hex
    try:
        content = path.read_bytes()
    except OSError as error:
        raise RequestError(f"{path} cannot be read ({error.strerror}).") from error
    head = (
        f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="upload"\r\n'
        "Content-Type: application/octet-stream\r\n\r\n"
    )
    return head.encode() + content + f"\r\n--{boundary}--\r\n".encode(), f"multipart/form-data; boundary={boundary}"


def predict_local(
    model: Path | str | Ref,
    inputs: Sequence[Any] = (),
    files: Sequence[Path] = (),
    version: str = "local",
    options: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Predicts with a model's folder (or S3 URI) in this process; takes and gives what `predict` does.

    Args:
        options: How a model that writes texts does it, by the names of `Sampling`.

    Raises:
        RequestError: If the task has no such option.
        ArtifactError: If the model was altered, or is not the one that a Ref names.
    """
    from components.models.predictor import load_predictor
    from components.serve.replica import open_servable

    artifact = open_servable(str(model) if isinstance(model, Path) else model)
    predictor = load_predictor(artifact.path, os.cpu_count() or 1)
    preprocessing = predictor.preprocessing
    raw = [preprocessing.parse_inputs(list(inputs))] if inputs else []
    for path in files:
        try:
            raw.append(preprocessing.parse_file(path.read_bytes()))
        except OSError as error:
            raise RequestError(f"{path} cannot be read ({error.strerror}).") from error
    if not raw:
        raise SpecError("There is nothing to predict; give --input or a file.")
    task = get_task(predictor.task)
    for name in options or {}:
        if name not in task.options:
            known = ", ".join(task.options) or "none"
            raise RequestError(f"{name} is no option of a {task.name} model; it has: {known}.", field=name)
    return {
        "predictions": [item for rows in raw for item in task.answer(predictor, rows, options or {})],
        "model": {"name": artifact.path.name, "version": version, "digest": artifact.digest},
    }


def sample_input(dataset: Path, model: Path) -> Any:
    """The first row of the validation split as an item of `inputs`: a text, or an image as nested lists of pixels.

    Args:
        dataset: Local folder of the Dataset artifact.
        model: Local folder of the model, for its preprocessing.
    """
    from components.artifacts.dataset import open_split

    split = open_split(dataset, "validation")
    values = json.loads((model / "config.json").read_text())["inputs"]
    if "text" in split.table.column_names:
        return split.table.column("text")[0].as_py()
    return _pixels(split.take([0]), values)


def _pixels(encoded: Mapping[str, Sequence[bytes]], values: Mapping[str, int]) -> list[Any]:
    """One stored image as (H, W) or (H, W, C) nested lists."""
    import numpy as np

    size, channels = values["image_size"], values["channels"]
    array = np.frombuffer(encoded["pixels"][0], dtype=np.uint8).reshape(size, size, channels)
    return (array[:, :, 0] if channels == 1 else array).tolist()


def curl_example(sample: Any, url: str, file: Path | None = None, longest: int = 2000) -> str:
    """A curl line that works as printed for one input.

    Args:
        sample: One item of `inputs`.
        file: Where the body is written if the line would be longer than `longest` characters.
    """
    content = json.dumps({"inputs": [sample]}, separators=(",", ":"), ensure_ascii=False)
    body = shlex.quote(content)
    if len(body) > longest and file is not None:
        file.write_text(content)
        body = f"@{shlex.quote(str(file))}"
    key = ' -H "Authorization: Bearer $PENSTOCK_API_KEY"' if os.environ.get(VARIABLE) else ""
    return f"curl -s {url}/v1/predict -H 'Content-Type: application/json'{key} -d {body}"
