"""The endpoint's routes as an ASGI application, independent of Ray: it is given something that answers.

    GET  /v2/health/live  /v2/health/ready      no key needed
    GET  /v2  /v2/models/NAME[/versions/V][/ready]
    POST /v2/models/NAME[/versions/V]/infer     Open Inference Protocol
    POST /v1/predict                            {"inputs": [...]} or a multipart `file`

Every error has the body {"error": one sentence, "code": a stable word}: no traceback, path or version.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from components.errors import RequestError
from components.serve import body as bodies
from components.serve import protocol
from components.serve.guard import Guard

if TYPE_CHECKING:
    import numpy as np
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.types import ASGIApp

    from components.serve.protocol import ModelIdentity
    from components.tasks.base import RawRows
    from components.tasks.classification import ClassPreprocessing

# Parsing beyond this leaves the event loop, so that one large request does not hold up the small ones.
LARGE_BODY_BYTES = 32 << 10
STATUS = {"too-large": 413, "unsupported": 415}
logger = logging.getLogger("penstock.serve")

Encoded = Mapping[str, list[Any]]
Parser = Callable[[], "RawRows"]


class Engine(Protocol):
    """What answers behind the routes."""

    identity: ModelIdentity
    preprocessing: ClassPreprocessing

    async def logits(self, encoded: Encoded) -> np.ndarray:
        """Logits (B, classes) of encoded rows."""


@dataclass(frozen=True)
class Routes:
    """The handlers of one model's endpoint."""

    engine: Engine
    max_body_bytes: int

    async def health(self, request: Request) -> Response:
        # The application is only reachable once the model is loaded and has answered its golden sample.
        return reply({"live" if request.url.path.endswith("live") else "ready": True})

    async def server_metadata(self, request: Request) -> Response:
        return reply({"name": "penstock", "version": "2", "extensions": []})

    async def metadata(self, request: Request) -> Response:
        self._check_model(request)
        return reply(protocol.model_metadata(self.engine.identity, self.engine.preprocessing))

    async def model_ready(self, request: Request) -> Response:
        self._check_model(request)
        return reply({"name": self.engine.identity.name, "ready": True})

    async def infer(self, request: Request) -> Response:
        self._check_model(request)
        raw = await bodies.read_body(request, self.max_body_bytes)
        preprocessing = self.engine.preprocessing
        content: dict[str, Any] = {}

        def parse() -> RawRows:
            content.update(bodies.parse_json(raw))
            protocol.requested_outputs(content)
            return preprocessing.parse_inputs(protocol.tensor_inputs(content, preprocessing.signature()))

        logits = await self._answer(parse, len(raw))
        return reply(protocol.infer_response(content, self.engine.identity, preprocessing, logits))

    async def predict(self, request: Request) -> Response:
        preprocessing = self.engine.preprocessing
        if request.headers.get("content-type", "").startswith("multipart/form-data"):
            raw = await bodies.read_upload(request, self.max_body_bytes)
            logits = await self._answer(lambda: preprocessing.parse_file(raw), len(raw))
        else:
            raw = await bodies.read_body(request, self.max_body_bytes)
            logits = await self._answer(
                lambda: preprocessing.parse_inputs(protocol.predict_inputs(bodies.parse_json(raw))), len(raw)
            )
        return reply({"predictions": preprocessing.predictions(logits), "model": self.engine.identity.as_dict()})

    async def _answer(self, parse: Parser, size_bytes: int) -> np.ndarray:
        """Logits of what `parse` makes of a body."""
        import numpy as np

        encode = self.engine.preprocessing.encode
        if size_bytes > LARGE_BODY_BYTES:
            encoded = await asyncio.to_thread(lambda: encode(parse()))
        else:
            encoded = encode(parse())
        logits = await self.engine.logits(encoded)
        if not np.isfinite(logits).all():
            raise RequestError("The model has no finite answer to these inputs.")
        return logits

    def _check_model(self, request: Request) -> None:
        from starlette.exceptions import HTTPException

        wanted = request.path_params
        identity = self.engine.identity
        if wanted["name"] != identity.name or wanted.get("version", identity.version) != identity.version:
            raise HTTPException(404)


def build_application(engine: Engine, max_body_bytes: int, guard: Guard) -> ASGIApp:
    """The ASGI application that answers with `engine`."""
    from starlette.applications import Starlette
    from starlette.exceptions import HTTPException
    from starlette.routing import Route

    handlers = Routes(engine, max_body_bytes)
    models = ("/v2/models/{name}", "/v2/models/{name}/versions/{version}")
    routes = [
        Route("/v2/health/live", catching(handlers.health)),
        Route("/v2/health/ready", catching(handlers.health)),
        Route("/v2", catching(handlers.server_metadata)),
        Route("/v1/predict", catching(handlers.predict), methods=["POST"]),
        *[Route(model, catching(handlers.metadata)) for model in models],
        *[Route(f"{model}/ready", catching(handlers.model_ready)) for model in models],
        *[Route(f"{model}/infer", catching(handlers.infer), methods=["POST"]) for model in models],
    ]
    application = Starlette(routes=routes, exception_handlers={HTTPException: http_error})
    application.router.redirect_slashes = False
    return guard.around(application)


def catching(handler: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
    """The handler with its errors turned into answers; an unforeseen one is logged and hidden from the client."""
    from starlette.exceptions import HTTPException
    from starlette.requests import ClientDisconnect

    async def answer(request: Request) -> Response:
        try:
            return await handler(request)
        except (HTTPException, ClientDisconnect):
            raise
        except RequestError as error:
            return error_reply(STATUS.get(error.kind, 400), error.kind, error.message)
        except Exception:
            logger.exception("A request failed.")
            return error_reply(500, "internal", "The request could not be answered.")

    return answer


async def http_error(request: Request, error: Exception) -> Response:
    """The answer to an unknown route or method."""
    status = getattr(error, "status_code", 500)
    known = {404: ("not-found", "There is no such route or model."), 405: ("method", "This method is not allowed.")}
    code, message = known.get(status, ("http", "The request cannot be answered."))
    return error_reply(status, code, message)


def reply(content: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """A JSON response."""
    from starlette.responses import Response

    text = json.dumps(content, separators=(",", ":"), ensure_ascii=False)
    return Response(text, status, headers=dict(headers or {}), media_type="application/json")


def error_reply(status: int, code: str, message: str) -> Response:
    """An error's response. After a refused body the connection closes, since its rest is not read."""
    headers = {"connection": "close"} if status == 413 else {}
    if status == 401:
        headers = {"www-authenticate": "Bearer"}
    return reply({"error": message, "code": code}, status, headers)
