"""The routes over a real predictor, without Ray."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from components.models.predictor import load_predictor
from components.serve.application import build_application
from components.serve.guard import Guard
from components.serve.keys import KeyRing
from components.serve.protocol import ModelIdentity
from components.serve.replica import run_locally
from tests.components.serve.tiny import IMAGE, tiny_context, tiny_model

LIMIT_BYTES = 4096
KEY = "k" * 32
OPEN = Guard()


class DirectEngine:
    """Answers each request alone."""

    def __init__(self, folder: Path, digest: str) -> None:
        self.predictor = load_predictor(folder)
        self.preprocessing = self.predictor.preprocessing
        self.identity = ModelIdentity("tiny", "3", digest)

    async def logits(self, encoded: Any) -> np.ndarray:
        return self.predictor.logits(self.preprocessing.collate(encoded))


@pytest.fixture(scope="module", params=["image", "text"])
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> DirectEngine:
    home = tmp_path_factory.mktemp("home")
    model = tiny_model(home / "model", tiny_context(home), text=request.param == "text")
    return DirectEngine(model.path, model.digest)


@pytest.fixture(scope="module")
def image_engine(tmp_path_factory: pytest.TempPathFactory) -> DirectEngine:
    home = tmp_path_factory.mktemp("home")
    model = tiny_model(home / "model", tiny_context(home))
    return DirectEngine(model.path, model.digest)


def ask(engine: DirectEngine, method: str, path: str, guard: Guard = OPEN, **more: Any) -> httpx.Response:
    async def once() -> httpx.Response:
        transport = httpx.ASGITransport(build_application(engine, LIMIT_BYTES, guard))
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            return await client.request(method, path, **more)

    return asyncio.run(once())


def sample(engine: DirectEngine) -> Any:
    return IMAGE if engine.predictor.task == "image-classification" else "the gate opens"


def test_predict_answers_label_score_and_model(engine: DirectEngine) -> None:
    inputs = [sample(engine)] * 2
    answer = ask(engine, "POST", "/v1/predict", json={"inputs": inputs})
    expected = engine.preprocessing.predictions(run_locally(engine.predictor, inputs))
    assert answer.status_code == 200
    assert answer.json()["model"] == engine.identity.as_dict()
    assert answer.json()["predictions"] == expected


@pytest.mark.parametrize("path", ["/v2/models/tiny/infer", "/v2/models/tiny/versions/3/infer"])
def test_infer_answers_logits_probabilities_and_labels(engine: DirectEngine, path: str) -> None:
    [tensor] = engine.preprocessing.signature()
    data = np.ravel(IMAGE).tolist() if tensor["datatype"] != "BYTES" else [sample(engine)]
    body = {"id": "7", "inputs": [{**tensor, "shape": [1, *tensor["shape"][1:]], "data": data}]}
    answer = ask(engine, "POST", path, json=body).json()
    outputs = {output["name"]: output for output in answer["outputs"]}
    expected = run_locally(engine.predictor, [sample(engine)])
    assert (answer["id"], answer["model_name"], answer["model_version"]) == ("7", "tiny", "3")
    np.testing.assert_allclose(outputs["logits"]["data"], expected[0], rtol=1e-6)
    assert sum(outputs["probabilities"]["data"]) == pytest.approx(1)
    assert outputs["label"]["data"] == [engine.preprocessing.classes[expected[0].argmax()]]


def test_health_and_metadata(engine: DirectEngine) -> None:
    for path in ("/v2/health/live", "/v2/health/ready", "/v2", "/v2/models/tiny/ready", "/v2/models/tiny/versions/3"):
        assert ask(engine, "GET", path).status_code == 200, path
    metadata = ask(engine, "GET", "/v2/models/tiny").json()
    assert (metadata["digest"], metadata["versions"]) == (engine.identity.digest, ["3"])
    assert metadata["inputs"] == engine.preprocessing.signature()


def test_uploaded_file_is_predicted(image_engine: DirectEngine) -> None:
    import io

    from PIL import Image

    content = io.BytesIO()
    Image.fromarray(np.array(IMAGE, np.uint8)).save(content, "PNG")
    answer = ask(image_engine, "POST", "/v1/predict", files={"file": ("x.png", content.getvalue())})
    expected = image_engine.preprocessing.predictions(run_locally(image_engine.predictor, [IMAGE]))
    assert answer.json()["predictions"] == expected


BAD_BODIES = {
    "not JSON": b"{",
    "not UTF-8": b'{"inputs": ["\xff"]}',
    "not an object": b"[]",
    "no inputs": b"{}",
    "empty inputs": b'{"inputs": []}',
    "another field": b'{"inputs": [[1]], "x": 1}',
    "NaN": b'{"inputs": [[[NaN]]]}',
    "beyond float64": b'{"inputs": [[[1e400]]]}',
    "too deep": b'{"inputs":' + b"[" * 1900 + b"]" * 1900 + b"}",
    "wrong type": b'{"inputs": [{"a": 1}]}',
    "null": b'{"inputs": [null]}',
    "ragged": b'{"inputs": [[[1, 2], [3]]]}',
    "empty body": b"",
    "half a surrogate": b'{"inputs": ["\\ud800"]}',
}


@pytest.mark.parametrize("body", BAD_BODIES.values(), ids=BAD_BODIES.keys())
@pytest.mark.parametrize("path", ["/v1/predict", "/v2/models/tiny/infer"])
def test_bad_body_gets_400_and_a_sentence(engine: DirectEngine, path: str, body: bytes) -> None:
    answer = ask(engine, "POST", path, content=body)
    assert answer.status_code == 400
    assert set(answer.json()) == {"error", "code"}
    assert answer.json()["code"] == "request"
    assert "Traceback" not in answer.text and "/" not in answer.json()["error"].replace("0..255", "")


def tensor_with(**changes: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda tensor: {**tensor, **changes}


BAD_TENSORS = [
    tensor_with(name="other"),
    tensor_with(datatype="FP64"),
    tensor_with(shape=[1, 4, 4]),
    tensor_with(shape=[-1, 4, 4, 1]),
    tensor_with(shape=[2, 4, 4, 1]),
    tensor_with(shape=[1 << 40, 4, 4, 1]),
    tensor_with(shape="x"),
    tensor_with(data=[[1, 2], 3]),
    tensor_with(data="x"),
    tensor_with(data=None),
]


@pytest.mark.parametrize("change", BAD_TENSORS)
def test_bad_tensor_gets_400(image_engine: DirectEngine, change: Callable) -> None:
    good = {"name": "image", "datatype": "UINT8", "shape": [1, 4, 4, 1], "data": [0] * 16}
    assert ask(image_engine, "POST", "/v2/models/tiny/infer", json={"inputs": [good]}).status_code == 200
    answer = ask(image_engine, "POST", "/v2/models/tiny/infer", json={"inputs": [change(good)]})
    assert (answer.status_code, answer.json()["code"]) == (400, "request")


@pytest.mark.parametrize("extra", [-1, 0, 1])
def test_body_over_the_limit_gets_413(image_engine: DirectEngine, extra: int) -> None:
    body = json.dumps({"inputs": [IMAGE]}).encode()
    answer = ask(image_engine, "POST", "/v1/predict", content=body.ljust(LIMIT_BYTES + extra))
    assert answer.status_code == (413 if extra > 0 else 200)


def test_endless_body_is_cut_off_while_it_arrives(image_engine: DirectEngine) -> None:
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        while sent < 100 * LIMIT_BYTES:
            sent += 1024
            yield b" " * 1024

    async def once() -> int:
        queue = [chunk async for chunk in endless()]
        messages = iter([{"type": "http.request", "body": chunk, "more_body": True} for chunk in queue])
        taken, status = 0, 0

        async def receive() -> dict:
            nonlocal taken
            taken += 1024
            return next(messages)

        async def send(message: dict) -> None:
            nonlocal status
            status = message.get("status", status)

        scope = {"type": "http", "method": "POST", "path": "/v1/predict", "headers": [], "query_string": b""}
        await build_application(image_engine, LIMIT_BYTES, Guard())(scope, receive, send)
        assert taken <= LIMIT_BYTES + 1024
        return status

    assert asyncio.run(once()) == 413


def test_compressed_body_gets_415(image_engine: DirectEngine) -> None:
    answer = ask(image_engine, "POST", "/v1/predict", content=b"x", headers={"content-encoding": "gzip"})
    assert answer.status_code == 415


def test_every_route_but_health_needs_a_key(image_engine: DirectEngine, tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text(f"# ours\n{KEY}\n")
    path.chmod(0o600)
    guard = Guard(KeyRing(path))
    routes = [("GET", "/v2"), ("GET", "/v2/models/tiny"), ("POST", "/v1/predict"), ("GET", "/nothing"), ("PUT", "/v2")]
    for method, route in routes:
        for headers in ({}, {"authorization": "Bearer " + "x" * 32}, {"authorization": KEY}):
            answer = ask(image_engine, method, route, guard, headers=headers)
            assert (answer.status_code, answer.json()["code"]) == (401, "key"), route
            assert KEY not in answer.text
    assert ask(image_engine, "GET", "/v2/health/ready", guard).status_code == 200
    assert ask(image_engine, "GET", "/v2", guard, headers={"authorization": f"Bearer {KEY}"}).status_code == 200


def test_changed_key_counts_without_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text(KEY)
    path.chmod(0o600)
    ring = KeyRing(path)
    path.write_text("n" * 40)
    assert not ring.accepts(f"Bearer {KEY}")
    assert ring.accepts("Bearer " + "n" * 40)
    path.unlink()
    assert not ring.accepts("Bearer " + "n" * 40)


@pytest.mark.parametrize("headers", [{"host": "evil.example"}, {"origin": "http://evil.example"}, {"origin": "null"}])
def test_foreign_page_is_refused_without_keys(image_engine: DirectEngine, headers: dict[str, str]) -> None:
    assert ask(image_engine, "GET", "/v2", headers=headers).status_code == 403
    assert ask(image_engine, "GET", "/v2", headers={"origin": "http://localhost:3000"}).status_code == 200
