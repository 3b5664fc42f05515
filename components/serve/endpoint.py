"""The record of a deployed endpoint, and asking whether it still answers.

`<home>/endpoints/<name>.json` is written when an endpoint is up. While one is there, the Ray under it is kept running.
"""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from components.artifacts.local_store import write_durably
from components.tracking.names import checked_name

ASK_TIMEOUT_S = 2.0


@dataclass(frozen=True)
class Endpoint:
    """A model that answers.

    Attributes:
        url: Root of its routes, without a slash at the end.
        application: Name of the Ray Serve application.
        host: Address that Serve listens on.
        port: Port of the Ray of this home: all its endpoints share it.
    """

    url: str
    name: str
    version: str
    digest: str
    application: str
    host: str
    port: int

    @property
    def route_prefix(self) -> str:
        return "/" + self.url.split("/", 3)[3] if self.url.count("/") > 2 else "/"


def endpoint_path(home: Path, name: str) -> Path:
    return home / "endpoints" / f"{checked_name(name)}.json"


def write_endpoint(home: Path, endpoint: Endpoint) -> None:
    path = endpoint_path(home, endpoint.name)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_durably(path, json.dumps(asdict(endpoint), indent=1, sort_keys=True))


def read_endpoint(home: Path, name: str) -> Endpoint | None:
    """The recorded endpoint of that name, live or not."""
    path = endpoint_path(home, name)
    return Endpoint(**json.loads(path.read_text())) if path.exists() else None


def read_endpoints(home: Path) -> list[Endpoint]:
    """All recorded endpoints, by name."""
    paths = sorted((home / "endpoints").glob("*.json"))
    return [Endpoint(**json.loads(path.read_text())) for path in paths]


def forget_endpoint(home: Path, name: str) -> None:
    endpoint_path(home, name).unlink(missing_ok=True)


def served_model(endpoint: Endpoint) -> dict[str, Any] | None:
    """What the endpoint says of its model, or None when it does not answer.

    With API keys on, the first usable key of PENSTOCK_API_KEYS_FILE is sent.
    """
    from components.serve.client import api_key_header

    request = urllib.request.Request(f"{endpoint.url}/v2/models/{endpoint.name}", headers=api_key_header())
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=ASK_TIMEOUT_S) as answer:
            return json.loads(answer.read(1 << 20))
    except (urllib.error.URLError, OSError, ValueError):
        return None


def is_live(endpoint: Endpoint) -> bool:
    """Whether the endpoint answers with the recorded model."""
    return (served_model(endpoint) or {}).get("digest") == endpoint.digest


def wait_until_live(endpoint: Endpoint, timeout_s: float) -> bool:
    """Asks until the endpoint answers with its model, three times in a row (old replicas answer to the end)."""
    deadline, in_a_row = time.monotonic() + timeout_s, 0
    while time.monotonic() < deadline:
        in_a_row = in_a_row + 1 if is_live(endpoint) else 0
        if in_a_row == 3:
            return True
        time.sleep(0.05)
    return False
