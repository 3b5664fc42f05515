"""Serving under attack and under load: names (row 14), Ray's token (row 2), loopback (row 1), overload, updates."""

from __future__ import annotations

import json
import os
import threading
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from components.errors import PenstockError, SpecError
from components.register.stage import StageConfig as RegisterConfig
from components.register.stage import run as register
from components.serve.config import DeployConfig
from components.serve.deploy import connected, deploy_model, stop_model
from components.serve.endpoint import Endpoint, endpoint_path, forget_endpoint, read_endpoint, write_endpoint
from components.serve.stage import StageConfig as DeployStageConfig
from components.serve.stage import run as deploy
from components.tracking import registry
from components.tracking.names import checked_name
from tests.components.serve.tiny import tiny_context, tiny_model

pytestmark = pytest.mark.faults

STEPS = [
    "..",
    ".",
    "...",
    "....//",
    "..\\",
    "%2e%2e",
    "%252e%252e",
    "%c0%ae%c0%ae",
    "\u2025",
    "\uff0e\uff0e",
    "..;",
    "..\x00",
]
ROOTS = ["/etc/passwd", "//etc", "\\\\host\\share", "C:\\x", "~", "~root", "file:///etc", "/dev/zero", "s3://x/y"]
TRICKS = [
    "", " ", "a b", "a\n", "a\x00b", "a/b", "a\\b", "-a", "_a", "a.b", "a%2fb", "a%00", "a;b", "a|b", "$(id)", "`id`",
    "${HOME}", "a'b", 'a"b', "a#b", "a?b", "a:b", "a@b", "a*", "\u0061\u0301", "\u202ea", "\ufeffa", "\U0001f4a5",
    "a" * 64, "a" * 5000, "{{x}}", "<a>", "a\r\nHost: x", "a\tb", "CON.", "a,b", "a=b", "a+b", "a&b", "a!",
]  # fmt: skip
PAYLOADS = [*STEPS, *[f"{step}/x" for step in STEPS], *[f"a/{step}/b" for step in STEPS[:8]], *ROOTS, *TRICKS]


def test_14_there_are_eighty_payloads() -> None:
    assert len(set(PAYLOADS)) >= 80


@pytest.mark.parametrize("payload", PAYLOADS)
def test_14_path_in_a_name_is_refused_everywhere(payload: str, tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    endpoint = Endpoint("http://127.0.0.1:1", payload, "1", "d", payload, "127.0.0.1", 1)
    for attempt in (
        lambda: checked_name(payload),
        lambda: endpoint_path(tmp_path, payload),
        lambda: read_endpoint(tmp_path, payload),
        lambda: write_endpoint(tmp_path, endpoint),
        lambda: forget_endpoint(tmp_path, payload),
        lambda: deploy_model(None, payload, "1", DeployConfig(), tmp_path),
        lambda: registry.promote(payload, "1", uri),
        lambda: registry.get_champion(payload, uri),
        lambda: registry.fetch_model(payload, "champion", uri),
        lambda: registry.register_model(None, payload, {}, uri),
        lambda: register(RegisterConfig(name=payload), {}, str(tmp_path / "out"), tiny_context(tmp_path / "home")),
        lambda: deploy(DeployStageConfig(name=payload), {}, str(tmp_path / "out"), tiny_context(tmp_path / "home")),
    ):
        with pytest.raises(SpecError):
            attempt()
    assert [path.name for path in tmp_path.iterdir()] == ["home"]


@pytest.mark.parametrize("payload", [payload for payload in PAYLOADS if payload.strip() and "\x00" not in payload])
def test_14_path_in_a_manifest_is_refused(payload: str, tmp_path: Path) -> None:
    """A file name in a manifest that leaves its folder is refused; a harmless odd one does not match any file."""
    from components.serve.replica import open_servable

    model = tiny_model(tmp_path / "model", tiny_context(tmp_path / "home"))
    path = model.path / "manifest.json"
    raw = json.loads(path.read_text())
    raw["files"][payload] = raw["files"].pop("config.json")
    path.write_text(json.dumps(raw))
    with pytest.raises(PenstockError):
        open_servable(str(model.path))


@pytest.fixture(scope="module")
def home(ray_session: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A home whose endpoints are on the tests' Ray; they are taken away at the end."""
    folder = tmp_path_factory.mktemp("home")
    with connected():
        yield folder
        for record in (folder / "endpoints").glob("*.json"):
            stop_model(folder, record.stem)


SMALL = DeployConfig(port=0, max_batch_size=1, max_queued_requests=2)


@pytest.fixture(scope="module")
def endpoint(home: Path) -> Endpoint:
    return deploy_model(tiny_model(home / "model", tiny_context(home)), "tiny", "1", SMALL, home)


def post(url: str, body: bytes) -> tuple[int, dict[str, str]]:
    """Status and headers of a `/v1/predict` request."""
    request = urllib.request.Request(f"{url}/v1/predict", data=body)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, dict(answer.headers)
    except urllib.error.HTTPError as error:
        return error.code, {name.lower(): value for name, value in error.headers.items()}


def test_1_endpoint_and_its_pages_listen_on_loopback_only(endpoint: Endpoint) -> None:
    listening = [item for item in psutil.net_connections("tcp") if item.status == psutil.CONN_LISTEN]
    haproxy = [item.laddr for item in listening if item.pid and psutil.Process(item.pid).name() == "haproxy"]
    ours = {address.port for address in haproxy}
    assert endpoint.port in ours and len(ours) >= 3
    mine = [address for address in haproxy if address.port in ours]
    assert {address.ip for address in mine} == {"127.0.0.1"}


def test_1_ray_does_not_list_the_routes_to_strangers(endpoint: Endpoint) -> None:
    with pytest.raises(urllib.error.HTTPError) as refusal:
        urllib.request.urlopen(f"{endpoint.url}/-/routes", timeout=10)
    assert refusal.value.code == 404


ROUTES = ["/api/jobs/", "/api/jobs/x", "/api/serve/applications/", "/api/version", "/nodes", "/api/actors", "/logs"]


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE", "PATCH"])
def test_2_ray_without_its_token_answers_401(ray_session: str, route: str, method: str) -> None:
    address = dashboard_address()
    for headers, expected in (({}, 401), ({"Authorization": "Bearer " + "0" * 64}, 403)):
        body = b'{"entrypoint": "touch x"}' if method != "GET" else None
        request = urllib.request.Request(f"{address}{route}", data=body, method=method, headers=headers)
        with pytest.raises(urllib.error.HTTPError) as refusal:
            urllib.request.urlopen(request, timeout=10)
        assert refusal.value.code == expected


def dashboard_address() -> str:
    """http:// address of the dashboard of the tests' Ray, from the record beside its token."""
    record = Path(os.environ["RAY_AUTH_TOKEN_PATH"]).parent / "record.json"
    return json.loads(record.read_text())["dashboard"]


def test_2_replica_ports_answer_to_the_token_only(endpoint: Endpoint) -> None:
    """With HAProxy's throughput settings each replica opens a gRPC port that takes pickles, on every interface."""
    import grpc

    # With the attributes asked for at once, a process that ends meanwhile has none instead of raising.
    pids = [
        item.pid
        for item in psutil.process_iter(["cmdline"])
        if "ServeReplica:tiny" in " ".join(item.info["cmdline"] or [])
    ]
    listening = [item for item in psutil.net_connections("tcp") if item.status == psutil.CONN_LISTEN]
    ports = [item.laddr.port for item in listening if item.pid in pids and item.laddr.ip != "127.0.0.1"]
    refused = 0
    for port in ports:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            call = channel.unary_unary("/ray.serve.ASGIService/HandleRequest")
            with pytest.raises(grpc.RpcError) as refusal:
                call(b"", timeout=5)
            assert refusal.value.code() in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.UNIMPLEMENTED)
            refused += refusal.value.code() is grpc.StatusCode.UNAUTHENTICATED
    assert refused >= 1


def test_overload_is_answered_with_503_and_retry_after(endpoint: Endpoint) -> None:
    body = json.dumps({"inputs": [[[7] * 4] * 4] * 3000}).encode()
    with ThreadPoolExecutor(60) as pool:
        answers = list(pool.map(lambda _: post(endpoint.url, body), range(120)))
    statuses = Counter(status for status, _ in answers)
    assert set(statuses) == {200, 503}, statuses
    assert all(int(headers["retry-after"]) >= 1 for status, headers in answers if status == 503)
    assert post(endpoint.url, b'{"inputs": [[[1,2,3,4],[1,2,3,4],[1,2,3,4],[1,2,3,4]]]}')[0] == 200


def test_14_path_in_a_route_is_refused(endpoint: Endpoint) -> None:
    """Raw request lines, because clients tidy paths up before they send them."""
    import http.client

    statuses = set()
    for payload in PAYLOADS:
        path = "".join(
            character if 33 <= ord(character) < 127 else f"%{ord(character) % 256:02x}" for character in payload
        )
        for route in (f"/v2/models/{path}", f"/v2/models/tiny/versions/{path}", f"/{path}"):
            connection = http.client.HTTPConnection("127.0.0.1", endpoint.port, timeout=10)
            connection._http_vsn_str = "HTTP/1.1"
            connection.putrequest("GET", route, skip_host=True)
            connection.putheader("Host", "127.0.0.1")
            connection.endheaders()
            answer = connection.getresponse()
            text = answer.read().decode()
            connection.close()
            is_model = route.rstrip("/") in ("/v2/models/tiny", "/v2/models/tiny/versions")
            statuses.add(answer.status)
            assert answer.status in (400, 404) or is_model, (route, answer.status)
            assert "root:" not in text and "Traceback" not in text
    assert 404 in statuses


def test_F2_update_under_load_loses_no_request(endpoint: Endpoint, home: Path) -> None:
    statuses: Counter[int] = Counter()
    done = threading.Event()
    body = json.dumps({"inputs": [[[1] * 4] * 4]}).encode()

    def ask() -> None:
        while not done.is_set():
            statuses[post(endpoint.url, body)[0]] += 1

    with ThreadPoolExecutor(2) as pool:
        for _ in range(2):
            pool.submit(ask)
        newer = deploy_model(tiny_model(home / "newer", tiny_context(home), seed=1), "tiny", "2", SMALL, home)
        done.set()
    assert set(statuses) == {200}, statuses
    assert newer.url == endpoint.url and newer.digest != endpoint.digest


def test_F3_model_that_answers_wrongly_is_refused_and_the_old_one_goes_on(
    endpoint: Endpoint, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dataclasses import replace

    from components.serve import deploy as deployment
    from components.serve.endpoint import is_live

    before = read_endpoint(home, "tiny")
    assert before is not None
    honest = deployment.replica_config
    wrong = ((1.0, 2.0, 3.0), (4.0, 5.0, 6.0))
    monkeypatch.setattr(deployment, "replica_config", lambda *given: replace(honest(*given), golden_logits=wrong))
    with pytest.raises(PenstockError, match="golden"):
        deploy_model(tiny_model(home / "third", tiny_context(home), seed=2), "tiny", "3", SMALL, home)
    assert read_endpoint(home, "tiny") == before
    assert is_live(before)
