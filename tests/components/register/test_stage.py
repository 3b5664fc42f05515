from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from components.artifacts import Ref, write_artifact
from components.errors import StageError
from components.evaluate.gate import CHAMPION, COMPRESSED
from components.register.stage import StageConfig, run
from components.tracking import registry
from components.tracking.client import make_client
from tests.components.serve.tiny import tiny_context, tiny_model

HELD = {"name": COMPRESSED, "passed": True}
PASSED = {"passed": True, "metric": "accuracy", "parts": [HELD]}
INFERIOR = {"passed": False, "parts": [HELD, {"name": CHAMPION, "passed": False}]}
REFUSED = {"passed": False, "parts": [{"name": COMPRESSED, "passed": False}]}


def stage_inputs(home: Path, gate: dict[str, Any] | None) -> dict[str, Ref]:
    context = tiny_context(home)
    model = tiny_model(home / "model", context)
    dataset = Ref(str(home / "dataset"), "d" * 64)
    with write_artifact(str(home / "evaluation"), "evaluation", {"dataset": dataset}, context) as draft:
        draft.write_json("gate.json", gate)
        draft.metadata = {"gate": gate}
    assert draft.artifact is not None
    return {"model": model.ref, "evaluation": draft.artifact.ref}


def test_version_carries_its_lineage_and_a_second_run_of_the_stage_makes_no_second_one(tmp_path: Path) -> None:
    context, inputs = tiny_context(tmp_path, stage="register"), stage_inputs(tmp_path, PASSED)
    artifacts = [run(StageConfig(name="tiny"), inputs, str(tmp_path / "out"), context) for _ in range(2)]
    assert [artifact.manifest.metadata["version"] for artifact in artifacts] == ["1", "1"]
    values = artifacts[1].read_json("registration.json")
    assert (values["alias"], values["digest"]) == ("challenger", inputs["model"].digest)
    client = make_client(context.tracking_uri)
    version = client.get_model_version_by_alias("tiny", "challenger")
    assert len(client.search_model_versions("name = 'tiny'")) == 1
    tags = version.tags
    assert tags["penstock.dataset_digest"] == "d" * 64
    assert tags["penstock.evaluation_digest"] == inputs["evaluation"].digest
    assert (tags["penstock.run_id"], tags["penstock.gate_passed"]) == (context.run_id, "true")


@pytest.mark.parametrize("gate", [REFUSED, None], ids=["refused", "no-gate"])
def test_model_that_did_not_pass_is_not_registered(tmp_path: Path, gate: dict[str, Any] | None) -> None:
    with pytest.raises(StageError, match="not registered"):
        run(StageConfig(name="tiny"), stage_inputs(tmp_path, gate), str(tmp_path / "out"), tiny_context(tmp_path))
    assert not (tmp_path / "mlflow.db").exists()


def test_model_inferior_only_to_the_champion_becomes_challenger(tmp_path: Path) -> None:
    context = tiny_context(tmp_path)
    artifact = run(StageConfig(name="tiny"), stage_inputs(tmp_path, INFERIOR), str(tmp_path / "out"), context)
    assert artifact.manifest.metadata["alias"] == "challenger"


def test_a_champion_that_the_gate_did_not_see_is_not_replaced(tmp_path: Path) -> None:
    context, inputs = tiny_context(tmp_path), stage_inputs(tmp_path, PASSED)
    other = tiny_model(tmp_path / "other", context, seed=7)
    registry.register_model(other, "tiny", {"penstock.run_id": "other"}, context.tracking_uri)
    registry.promote("tiny", "1", context.tracking_uri)
    with pytest.raises(StageError, match="tiny version 1 became champion after this run began"):
        run(StageConfig(name="tiny"), inputs, str(tmp_path / "out"), context)
    champion = registry.champion_tags("tiny", context.tracking_uri)
    assert champion == ("1", other.digest)


def test_offline_registers_nothing(tmp_path: Path) -> None:
    context = replace(tiny_context(tmp_path), offline=True)
    with pytest.raises(StageError, match="without --offline"):
        run(StageConfig(name="tiny"), stage_inputs(tmp_path, PASSED), str(tmp_path / "out"), context)
    assert not (tmp_path / "mlflow.db").exists()
