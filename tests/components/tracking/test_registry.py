from __future__ import annotations

from pathlib import Path

import pytest

from components.errors import SpecError, StageError
from components.tracking import registry
from components.tracking.client import make_client
from tests.components.serve.tiny import tiny_context, tiny_model

LINEAGE = {"penstock.run_id": "tiny-0001", "penstock.dataset_digest": "d" * 64}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


def test_same_model_of_the_same_run_is_one_version_and_a_new_run_another(home: Path) -> None:
    uri, model = f"sqlite:///{home}/mlflow.db", tiny_model(home / "model", tiny_context(home))
    first = registry.register_model(model, "tiny", LINEAGE, uri)
    again = registry.register_model(model, "tiny", LINEAGE, uri)
    other = registry.register_model(model, "tiny", {**LINEAGE, "penstock.run_id": "tiny-0002"}, uri)
    assert (first.version, again.version, other.version) == ("1", "1", "2")
    stored = make_client(uri).get_model_version("tiny", "1")
    assert stored.tags["penstock.model_digest"] == model.digest
    assert stored.tags["penstock.dataset_digest"] == "d" * 64


def test_champion_is_none_until_promoted_and_then_verified(home: Path) -> None:
    uri, model = f"sqlite:///{home}/mlflow.db", tiny_model(home / "other", tiny_context(home), seed=1)
    assert registry.get_champion("pipe", uri) is None
    registered = registry.register_model(model, "pipe", LINEAGE, uri)
    assert registry.get_champion("pipe", uri) is None
    registry.promote("pipe", registered.version, uri)
    champion = registry.get_champion("pipe", uri)
    assert champion is not None
    assert (champion["version"], champion["digest"]) == ("1", model.digest)
    assert (Path(champion["uri"]) / "model.onnx").is_file()
    fetched, version = registry.fetch_model("pipe", "challenger", uri)
    assert (fetched.digest, version) == (model.digest, "1")


def test_unreachable_registry_says_how_to_go_on(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    model = tiny_model(home / "third", tiny_context(home))
    with pytest.raises(StageError, match="run the same command again") as failure:
        registry.register_model(model, "tiny", LINEAGE, "http://127.0.0.1:9")
    assert failure.value.exit_code == 1


def test_bad_name_is_refused_before_anything_is_written(home: Path) -> None:
    model = tiny_model(home / "fourth", tiny_context(home))
    with pytest.raises(SpecError):
        registry.register_model(model, "../up", LINEAGE, f"sqlite:///{home}/unused.db")
    assert not (home / "unused.db").exists()
