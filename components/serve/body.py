"""Reading a request's body: a cap while it arrives, JSON without surprises, one uploaded file."""

from __future__ import annotations

import json
import math
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING, Any

from components.errors import RequestError

if TYPE_CHECKING:
    from starlette.requests import Request


class TooLargeError(RequestError):
    """The body is larger than the endpoint takes (HTTP 413)."""

    kind = "too-large"


class UnsupportedError(RequestError):
    """The body comes in a form that is not taken (HTTP 415)."""

    kind = "unsupported"


async def read_body(request: Request, limit_bytes: int) -> bytes:
    """The whole body.

    Raises:
        TooLargeError: As soon as more than `limit_bytes` are announced or have arrived.
    """
    return b"".join([chunk async for chunk in capped_stream(request, limit_bytes)])


async def capped_stream(request: Request, limit_bytes: int) -> AsyncGenerator[bytes, None]:
    """The body's chunks; see `read_body`."""
    message = f"The body is larger than {limit_bytes} bytes; send fewer inputs in one request."
    announced = request.headers.get("content-length", "0")
    if announced.isdecimal() and int(announced) > limit_bytes:
        raise TooLargeError(message)
    if request.headers.get("content-encoding", "identity") != "identity":
        raise UnsupportedError("The body is compressed; send it as it is.")
    size_bytes = 0
    async for chunk in request.stream():
        size_bytes += len(chunk)
        if size_bytes > limit_bytes:
            raise TooLargeError(message)
        yield chunk


def parse_json(body: bytes) -> dict[str, Any]:
    """The JSON object in `body`.

    Raises:
        RequestError: If it is no JSON object, is nested too deep, or holds NaN, Infinity or a number beyond float64.
    """
    try:
        value = json.loads(body.decode(), parse_constant=_refuse_constant, parse_float=_finite)
    except RecursionError as error:
        raise RequestError("The body is nested too deep.") from error
    except ValueError as error:
        reason = error.msg if isinstance(error, json.JSONDecodeError) else "not UTF-8, or not a finite number"
        raise RequestError(f"The body is not valid JSON ({reason}).") from error
    if not isinstance(value, dict):
        raise RequestError("The body must be a JSON object.")
    return value


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON number")


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError("a number is beyond float64")
    return value


async def read_upload(request: Request, limit_bytes: int) -> bytes:
    """The bytes of the one part named `file` of a multipart body."""
    from starlette.datastructures import UploadFile
    from starlette.formparsers import MultiPartException, MultiPartParser

    stream = capped_stream(request, limit_bytes)
    try:
        form = await MultiPartParser(request.headers, stream, max_files=1, max_fields=8).parse()
    except (MultiPartException, KeyError) as error:
        raise RequestError("The multipart body cannot be read; send one part named `file`.") from error
    try:
        upload = form.get("file")
        if not isinstance(upload, UploadFile):
            raise RequestError("The multipart body has no part named `file` with a file name.")
        return await upload.read()
    finally:
        await form.close()
