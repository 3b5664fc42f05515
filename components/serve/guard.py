"""Who may ask: API keys, and the Host and Origin headers that keep a web page from asking through a browser."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from components.serve.keys import KeyRing, is_loopback

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

OPEN_PATHS = frozenset({"/v2/health/live", "/v2/health/ready"})


@dataclass(frozen=True)
class Guard:
    """Refuses requests before any route sees them.

    Attributes:
        keys: The keys to ask for on every route but health; None asks for none (loopback).
    """

    keys: KeyRing | None = None

    def around(self, application: ASGIApp) -> ASGIApp:
        """The application behind this guard."""
        from components.serve.application import error_reply

        async def guarded(scope: Scope, receive: Receive, send: Send) -> None:
            refusal = self.refusal(scope) if scope["type"] != "lifespan" else None
            if refusal is None:
                await application(scope, receive, send)
            elif scope["type"] == "http":
                await error_reply(*refusal)(scope, receive, send)
            else:
                await send({"type": "websocket.close", "code": 1008})

        return guarded

    def refusal(self, scope: Scope) -> tuple[int, str, str] | None:
        """Status, code and sentence of why a request is refused, or None."""
        headers = {name.lower(): value.decode("latin-1") for name, value in scope["headers"]}
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        if path in OPEN_PATHS:
            return None
        if self.keys is None:
            return foreign_page(headers)
        if not self.keys.accepts(headers.get(b"authorization")):
            return 401, "key", "This endpoint needs an API key: send the header `Authorization: Bearer KEY`."
        return None


def foreign_page(headers: dict[bytes, str]) -> tuple[int, str, str] | None:
    """Without keys only this machine may ask, and not for a web page of another site (DNS rebinding)."""
    origin = headers.get(b"origin", "").rpartition("//")[2]
    for host in filter(None, (headers.get(b"host", ""), origin)):
        if not is_loopback(host_name(host)):
            return 403, "host", "This endpoint answers this machine alone; ask for it as 127.0.0.1 or localhost."
    return None


def host_name(authority: str) -> str:
    """The host of `host:port` or `[ipv6]:port`."""
    if authority.startswith("["):
        return authority[1:].partition("]")[0]
    return authority.rpartition(":")[0] or authority
