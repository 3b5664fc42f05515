from __future__ import annotations

import json
from pathlib import Path

import pytest

from components.artifacts import write_artifact
from components.context import Context
from pipelines.cache import drop_rotten_entries, stage_output, walk_artifacts
from pipelines.run_folder import RunFacts
from pipelines.spec import load_spec
from pipelines.stages import KINDS, plan_stages

SPEC = {"task": "image-classification", "data": {"source": "builtin://digits"}, "model": {"architecture": "mlp"}}


@pytest.fixture
def finished(tmp_path):
    """A run of three stages with their artifacts and kfp's cache entries."""
    facts = RunFacts("r", "i", str(tmp_path), str(tmp_path / "artifacts"), "sqlite:///x", "s", "c", "source", "code")
    plans = plan_stages(load_spec(SPEC).spec, "source", facts.tracking_uri, until="compress")
    context = Context("r", "data", tmp_path, tmp_path, tmp_path)
    cache, outputs = tmp_path / "kfp", {}
    cache.mkdir()
    for plan in plans:
        uri = stage_output(plan, facts, outputs)
        with write_artifact(uri, KINDS[plan.name], {}, context) as draft:
            draft.write_json("content.json", plan.name)
        assert draft.artifact is not None
        outputs[plan.name] = draft.artifact.ref.to_json()
        (cache / f"{plan.name}.json").write_text(json.dumps({"Output": outputs[plan.name]}))
    return plans, facts, cache


def test_whole_artifacts_keep_their_entries(finished):
    plans, facts, cache = finished
    assert drop_rotten_entries(plans, facts, cache) == []
    assert list(walk_artifacts(plans, facts)) == ["data", "train", "compress"]


@pytest.mark.parametrize("harm", ["truncate", "delete", "manifest"])
def test_a_rotten_artifact_loses_its_entry_and_only_its(finished, harm):
    plans, facts, cache = finished
    folder = walk_artifacts(plans, facts)["train"].uri
    if harm == "truncate":
        (Path(folder) / "content.json").write_text("")
    elif harm == "delete":
        (Path(folder) / "content.json").unlink()
    else:
        (Path(folder) / "manifest.json").write_text("{")
    assert drop_rotten_entries(plans, facts, cache) == [folder]
    assert sorted(path.stem for path in cache.glob("*.json")) == ["compress", "data"]
    assert list(walk_artifacts(plans, facts)) == ["data"]


def test_two_rotten_artifacts_both_lose_their_entries(finished):
    plans, facts, cache = finished
    folders = [Path(ref.uri) for ref in walk_artifacts(plans, facts).values()][:2]
    for folder in folders:
        (folder / "content.json").write_text("")
    assert drop_rotten_entries(plans, facts, cache) == [str(folder) for folder in folders]
    assert [path.stem for path in cache.glob("*.json")] == ["compress"]


def test_an_unreadable_entry_is_removed(finished):
    plans, facts, cache = finished
    (cache / "torn.json").write_text('{"Out')
    drop_rotten_entries(plans, facts, cache)
    assert not (cache / "torn.json").exists()
