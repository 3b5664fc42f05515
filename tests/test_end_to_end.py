"""One whole run of the real command, from data to a live endpoint, and all that must hold while it is up."""

from __future__ import annotations

import io
import json
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import penstock
from components.artifacts import open_artifact
from components.artifacts.dataset import open_split
from tests.command import Answer, Home, new_home

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def home() -> Iterator[Home]:
    with new_home("pe-") as home:
        yield home


@pytest.fixture(scope="module")
def spec(home: Home) -> Path:
    return home.write_spec()


@pytest.fixture(scope="module")
def ended(home: Home, spec: Path) -> Answer:
    """The run, as a person sees it."""
    answer = home.run("run", spec)
    assert answer.exit_code == 0, answer.stderr
    return answer


@pytest.fixture(scope="module")
def result(home: Home, ended: Answer) -> dict[str, Any]:
    return home.result()


def test_a_person_sees_each_stage_and_the_end(ended: Answer, result: dict[str, Any]) -> None:
    for stage in result["stages"]:
        assert re.search(rf"^{stage} +done in ", ended.stderr + ended.stdout, re.MULTILINE)
    assert "linear baseline" in ended.stdout
    assert result["endpoint"]["url"] in ended.stdout
    assert "penstock stop" in ended.stdout


def test_the_result_says_what_became_of_the_data(result: dict[str, Any]) -> None:
    assert result["status"] == "done"
    assert all(stage["status"] == "done" for stage in result["stages"].values())
    assert result["compressed"]["metrics"]["test"]["accuracy"] > 0.8
    assert result["compressed"]["size_ratio"] > 2
    assert result["gate"]["passed"] and result["gate"]["n"] == 450
    assert result["registered"] == {"name": "small", "version": "1", "alias": "champion"}


def test_the_printed_curl_line_answers_as_it_stands(ended: Answer, result: dict[str, Any]) -> None:
    (line,) = [line for line in ended.stdout.splitlines() if line.startswith("ask it")]
    command = shlex.split(line.removeprefix("ask it"))
    assert command[0] == "curl"
    answer = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    assert answer["predictions"][0]["label"] in [str(digit) for digit in range(10)]
    assert answer["model"]["digest"] == result["compressed"]["digest"]


def test_the_endpoint_predicts_what_was_evaluated(result: dict[str, Any]) -> None:
    import pyarrow.parquet

    test = open_split(open_artifact(result["stages"]["data"]["artifact"]).path, "test")
    evaluation = open_artifact(result["stages"]["evaluate"]["artifact"]).path
    rows = pyarrow.parquet.read_table(evaluation / "predictions.parquet").to_pylist()
    images = [pixels_of(image) for image in test.column("image")[:20]]
    answer = penstock.predict(result["endpoint"]["url"], inputs=images)
    told = [prediction["label"] for prediction in answer["predictions"]]
    assert [row["id"] for row in rows] == test.column("id")
    assert told == [row["compressed_predicted"] for row in rows[:20]]
    right = sum(row["label"] == row["compressed_predicted"] for row in rows) / len(rows)
    assert right == pytest.approx(result["compressed"]["metrics"]["test"]["accuracy"])


def pixels_of(image: bytes) -> list[list[int]]:
    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(image))).tolist()


def test_python_asks_the_endpoint_too(result: dict[str, Any]) -> None:
    blank = [[0] * 8 for _ in range(8)]
    answer = penstock.predict(result["endpoint"]["url"], inputs=[blank, blank])
    assert len(answer["predictions"]) == 2
    assert answer["model"]["name"] == "small"


def test_nothing_but_rays_own_ports_listens_off_loopback(home: Home, result: dict[str, Any]) -> None:
    """Ray's ports cannot be confined by settings; its token guards them (row 2)."""
    ours = home.processes()
    listing = subprocess.run(["ss", "-Hltnp"], capture_output=True, text=True, check=True).stdout
    places = {}
    for line in listing.splitlines():
        pids = {int(pid) for pid in re.findall(r"pid=(\d+)", line)}
        if pids & ours:
            places[line.split()[3]] = line
    port = result["endpoint"]["url"].rpartition(":")[2]
    assert f"127.0.0.1:{port}" in places
    proxies = [place for place, line in places.items() if "haproxy" in line]
    assert len(proxies) >= 2  # the endpoint and its metrics page
    assert all(place.startswith("127.0.0.1:") for place in proxies)


def test_the_same_command_again_is_answered_from_the_cache(home: Home, spec: Path, result: dict[str, Any]) -> None:
    again = home.run("run", spec, "--json")
    assert again.exit_code == 0
    document = again.document()
    assert document["run_id"] == result["run_id"]
    assert document["model"] == result["model"]
    assert all(stage["cached"] for stage in document["stages"].values())
    assert [event["kind"] for event in home.events("attempt")] == ["attempt"]


def test_a_refusing_gate_is_exit_3_and_nothing_new_is_registered(home: Home, result: dict[str, Any]) -> None:
    """With 90 test rows a tolerance of 0.02 cannot be shown, whatever the model."""
    few = {"data": {"source": "builtin://digits", "split": {"validation": 0.1, "test": 0.05}}}
    few |= {"compress": {"candidates": ["int8-dynamic"], "accept": {"max_drop": 0.02}}}
    refused = home.run("run", home.write_spec(**few), "--json")
    document = refused.document()
    assert refused.exit_code == 3
    assert document["status"] == "refused"
    assert not document["gate"]["passed"]
    assert document["compressed"]["metrics"]["test"]["accuracy"] > 0.5
    assert document["registered"] is None
    assert document["endpoint"] is None


def test_stop_leaves_no_process_and_no_socket(home: Home, result: dict[str, Any]) -> None:
    home.processes()
    answer = home.run("stop", "--json")
    assert answer.exit_code == 0
    assert answer.document()["endpoints"] == ["small"]
    home.seconds_until_gone(30)
    assert not list((home.path / "ray").glob("**/*.sock"))
    assert home.run("stop").stdout.strip() == "nothing was running"
