"""The same run with its artifacts in S3: what passes between stages is an address, never a local path."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from pipelines.cli import main
from tests.command import SMALL
from tests.components.artifacts.conftest import s3_client, s3_server  # noqa: F401 (fixtures)
from tests.components.artifacts.stores import BUCKET

pytestmark = [pytest.mark.s3, pytest.mark.slow]


def test_a_run_with_its_artifacts_in_s3(s3_client, penstock_home, tmp_path, monkeypatch, capsys):  # noqa: F811
    monkeypatch.setenv("PENSTOCK_ARTIFACT_ROOT", f"s3://{BUCKET}/{tmp_path.name}")
    spec = tmp_path / "small.yaml"
    spec.write_text(json.dumps({**SMALL, "train": {**SMALL["train"], "epochs": 1}}))
    arguments = ["run", str(spec), "--debug", "--offline", "--until", "compress", "--json"]
    assert main(arguments) == 0
    first = json.loads(capsys.readouterr().out)
    assert first["compressed"]["uri"].startswith(f"s3://{BUCKET}/")
    assert not (penstock_home / "artifacts").exists()
    # Another machine has none of the copies, and the run is whole for it too.
    shutil.rmtree(penstock_home / "cache" / "s3")
    assert main(arguments) == 0
    again = json.loads(capsys.readouterr().out)
    assert again["compressed"] == first["compressed"]
    assert all(stage["cached"] for stage in again["stages"].values())
    assert {path.name for path in Path(penstock_home, "cache", "s3").rglob("*") if ".partial" in path.name} == set()
