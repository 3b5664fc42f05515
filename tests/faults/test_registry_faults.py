"""D7: what lies in the registry changes at rest. Ours refuses every case; plain MLflow (the control) hands it out."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from components.errors import ArtifactError
from components.tracking import registry
from tests.components.serve.tiny import tiny_context, tiny_model

pytestmark = pytest.mark.faults
FILES = ("model.onnx", "config.json", "preprocess/preprocessing.json", "manifest.json")


def flip_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def to_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def to_link(path: Path) -> None:
    moved = path.with_name(path.name + ".moved")
    path.rename(moved)
    path.symlink_to(moved)


CHANGES: tuple[Callable[[Path], None], ...] = (flip_byte, cut_short, Path.unlink, to_folder, to_link)


@pytest.fixture(scope="module")
def registered(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, Path]:
    """The registry's address, the folder its files lie in, and an untouched copy of that folder."""
    home = tmp_path_factory.mktemp("home")
    uri = f"sqlite:///{home}/mlflow.db"
    model = tiny_model(home / "model", tiny_context(home))
    version = registry.register_model(model, "tiny", {"penstock.run_id": "tiny-0001"}, uri).version
    registry.promote("tiny", version, uri)
    champion = registry.get_champion("tiny", uri)
    assert champion is not None
    folder = Path(champion["uri"])
    shutil.copytree(folder, home / "untouched")
    return uri, folder, home / "untouched"


@pytest.fixture
def restored(registered: tuple[str, Path, Path]) -> tuple[str, Path]:
    uri, folder, untouched = registered
    shutil.rmtree(folder)
    shutil.copytree(untouched, folder)
    return uri, folder


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_D7_model_changed_at_rest_is_refused(restored: tuple[str, Path], name: str, change: Callable) -> None:
    uri, folder = restored
    change(folder / name)
    with pytest.raises(ArtifactError):
        registry.get_champion("tiny", uri)
    with pytest.raises(ArtifactError):
        registry.fetch_model("tiny", "1", uri)


def test_D7_another_whole_model_in_its_place_is_refused(restored: tuple[str, Path], tmp_path: Path) -> None:
    uri, folder = restored
    other = tiny_model(tmp_path / "other", tiny_context(tmp_path), seed=7)
    shutil.rmtree(folder)
    shutil.copytree(other.path, folder)
    with pytest.raises(ArtifactError, match="digest"):
        registry.fetch_model("tiny", "champion", uri)


def test_D7_control_plain_mlflow_hands_out_an_altered_file(restored: tuple[str, Path], tmp_path: Path) -> None:
    import mlflow.artifacts

    uri, folder = restored
    flip_byte(folder / "model.onnx")
    fetched = mlflow.artifacts.download_artifacts("models:/tiny/1", dst_path=str(tmp_path), tracking_uri=uri)
    assert (Path(fetched) / "model.onnx").read_bytes() == (folder / "model.onnx").read_bytes()


def test_D7_intact_model_is_handed_out(restored: tuple[str, Path]) -> None:
    uri, _ = restored
    assert registry.fetch_model("tiny", "champion", uri)[1] == "1"
