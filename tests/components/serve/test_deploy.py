"""Deploying on a real Ray, and what can be checked before."""

from __future__ import annotations

import json
import shlex
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from components.artifacts import Ref, write_artifact
from components.errors import ArtifactError, BusyError, RequestError, SpecError, UnavailableError
from components.serve.client import curl_example, predict, predict_local
from components.serve.config import DeployConfig
from components.serve.deploy import check_port, connected, deploy_model, start_serve, stop_model
from components.serve.endpoint import Endpoint, is_live, read_endpoint, read_endpoints, write_endpoint
from components.serve.keys import VARIABLE, keys_file
from components.serve.replica import open_servable
from components.tracking import registry
from tests.components.serve.tiny import IMAGE, tiny_context, tiny_model


@pytest.fixture(scope="module")
def home(ray_session: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("home")
    with connected():
        yield folder
        for endpoint in read_endpoints(folder):
            stop_model(folder, endpoint.name)


@pytest.fixture(scope="module")
def endpoint(home: Path) -> Endpoint:
    """What the deploy stage leaves behind for a registered model."""
    from components.serve.stage import StageConfig, run

    context, model = tiny_context(home, stage="deploy"), tiny_model(home / "model", tiny_context(home))
    registered = registry.register_model(model, "tiny", {"penstock.run_id": context.run_id}, context.tracking_uri)
    with write_artifact(str(home / "registration"), "registration", {}, context) as draft:
        draft.write_json("registration.json", {"version": registered.version, "digest": model.digest})
    assert draft.artifact is not None
    config = StageConfig(name="tiny", deploy=DeployConfig(port=0), tracking_uri=context.tracking_uri)
    inputs = {"registration": draft.artifact.ref, "model": model.ref}
    artifact = run(config, inputs, str(home / "deployment"), context)
    return Endpoint(**artifact.read_json("deployment.json"))


def test_stage_leaves_a_live_endpoint_and_its_record_and_moves_champion(endpoint: Endpoint, home: Path) -> None:
    assert is_live(endpoint)
    assert read_endpoint(home, "tiny") == endpoint
    champion = registry.get_champion("tiny", tiny_context(home).tracking_uri)
    assert champion is not None and champion["digest"] == endpoint.digest


def test_endpoint_answers_as_the_folder_does(endpoint: Endpoint, home: Path) -> None:
    remote, local = predict(endpoint.url, [IMAGE, IMAGE]), predict_local(home / "model", [IMAGE, IMAGE])
    assert remote["model"] == {"name": "tiny", "version": "1", "digest": local["model"]["digest"]}
    assert [item["label"] for item in remote["predictions"]] == [item["label"] for item in local["predictions"]]


def test_printed_curl_line_works(endpoint: Endpoint, tmp_path: Path) -> None:
    for longest in (2000, 10):
        line = curl_example(IMAGE, endpoint.url, tmp_path / "body.json", longest)
        done = subprocess.run(shlex.split(line), capture_output=True, text=True, check=True)
        assert json.loads(done.stdout)["model"]["digest"] == endpoint.digest


def test_refused_request_raises_with_the_endpoints_sentence(endpoint: Endpoint) -> None:
    with pytest.raises(RequestError, match=r"inputs\[0\]"):
        predict(endpoint.url, [{"a": 1}])


def test_second_name_gets_its_own_path_and_goes_without_the_first(endpoint: Endpoint, home: Path) -> None:
    text = tiny_model(home / "text", tiny_context(home), text=True)
    second = deploy_model(text, "words", "7", DeployConfig(port=0), home)
    assert second.url == f"{endpoint.url}/words"
    assert predict(second.url, ["open the gate"])["model"]["version"] == "7"
    assert stop_model(home, "words")
    assert not is_live(second) and is_live(endpoint)
    assert read_endpoint(home, "words") is None


def test_another_port_of_the_same_home_is_refused(endpoint: Endpoint) -> None:
    with pytest.raises(BusyError, match="penstock stop"):
        start_serve("127.0.0.1", endpoint.port + 1)
    assert start_serve("127.0.0.1", 0) == endpoint.port


def test_our_own_live_endpoint_is_no_conflict(home: Path, endpoint: Endpoint) -> None:
    check_port("127.0.0.1", endpoint.port, home)
    with pytest.raises(BusyError, match=str(endpoint.port)):
        check_port("127.0.0.1", endpoint.port)


def test_taken_port_is_refused_by_number_also_with_the_record_of_a_dead_endpoint(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        dead = f"http://127.0.0.1:{port}"
        write_endpoint(tmp_path, Endpoint(dead, "tiny", "1", "d", "tiny", "127.0.0.1", port))
        with pytest.raises(BusyError, match=str(port)):
            check_port("127.0.0.1", port, tmp_path)
    check_port("127.0.0.1", port)


def test_nothing_listening_is_unavailable_and_not_live() -> None:
    dead = Endpoint("http://127.0.0.1:9", "tiny", "1", "d", "tiny", "127.0.0.1", 9)
    assert not is_live(dead)
    with pytest.raises(UnavailableError):
        predict(dead.url, [1])


def test_off_loopback_needs_a_private_file_of_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert keys_file("127.0.0.1") is None
    with pytest.raises(SpecError, match=VARIABLE):
        keys_file("0.0.0.0")
    path = tmp_path / "keys"
    monkeypatch.setenv(VARIABLE, str(path))
    for content, mode in (("", 0o600), ("k" * 32, 0o644), ("short", 0o600)):
        path.write_text(content)
        path.chmod(mode)
        with pytest.raises(SpecError):
            keys_file("0.0.0.0")
    path.write_text("k" * 32)
    path.chmod(0o600)
    assert keys_file("0.0.0.0") == path


def test_model_with_a_file_that_could_hold_code_is_not_served(tmp_path: Path) -> None:
    model = tiny_model(tmp_path / "model", tiny_context(tmp_path / "home"))
    (model.path / "extra.pkl").write_bytes(b"x")
    with pytest.raises(ArtifactError, match=r"extra\.pkl"):
        open_servable(Ref(str(model.path), model.digest))
