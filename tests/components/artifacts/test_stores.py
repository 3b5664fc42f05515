"""The contract of a store, run against the local folder and S3."""

from __future__ import annotations

import base64
import json
import shutil
from pathlib import Path

import pytest

from components.artifacts import Ref, open_artifact, write_artifact
from components.artifacts.artifact import check_artifact
from components.artifacts.store import store_for
from components.errors import ArtifactError, UnavailableError
from tests.components.artifacts.stores import FILES, Backend, make_context, write


class TestContract:
    def test_what_was_written_is_read_back(self, backend: Backend, tmp_path: Path) -> None:
        written = write(backend.uri("a"), tmp_path)
        read = open_artifact(written.ref, kind="model")
        assert {name: (read.path / name).read_bytes() for name in FILES} == dict(FILES)
        assert read.manifest == written.manifest
        assert read.manifest.metadata == {"parameters": 3}
        assert (written.path / "config.json").exists()

    def test_the_digest_is_of_the_content_alone(self, backend: Backend, tmp_path: Path) -> None:
        first = write(backend.uri("a"), tmp_path)
        second = write(backend.uri("b"), tmp_path, {**FILES, "metrics.json": b"other"})
        third = write(backend.uri("c"), tmp_path, {**FILES, "config.json": b"other"})
        assert first.digest == second.digest != third.digest
        assert open_artifact(second.ref).path.joinpath("metrics.json").read_bytes() == b"other"

    def test_absent_is_an_artifact_error(self, backend: Backend, tmp_path: Path) -> None:
        assert not store_for(backend.uri("none")).exists(backend.uri("none"))
        with pytest.raises(ArtifactError, match="No artifact"):
            open_artifact(backend.uri("none"))

    def test_an_error_while_writing_leaves_what_was_there(self, backend: Backend, tmp_path: Path) -> None:
        written = write(backend.uri("a"), tmp_path)
        with (
            pytest.raises(RuntimeError),
            write_artifact(backend.uri("a"), "model", {}, make_context(tmp_path)) as draft,
        ):
            (draft.path / "config.json").write_text("half")
            raise RuntimeError("the stage failed")
        assert open_artifact(written.ref).digest == written.digest
        assert not list(tmp_path.rglob("*.partial"))

    def test_a_newer_artifact_replaces_the_older(self, backend: Backend, tmp_path: Path) -> None:
        old = write(backend.uri("a"), tmp_path, {**FILES, "extra.json": b"1"})
        new = write(backend.uri("a"), tmp_path)
        assert open_artifact(backend.uri("a")).digest == new.digest != old.digest
        with pytest.raises(ArtifactError, match="digest"):
            open_artifact(old.ref)

    def test_another_kind_or_digest_is_refused(self, backend: Backend, tmp_path: Path) -> None:
        written = write(backend.uri("a"), tmp_path)
        with pytest.raises(ArtifactError, match="is a model"):
            open_artifact(written.ref, kind="dataset")
        assert "digest" in str(check_artifact(Ref(written.uri, "0" * 64)))
        assert check_artifact(written.ref) is None

    @pytest.mark.parametrize("name", FILES)
    def test_an_altered_cut_or_absent_file_is_refused(self, backend: Backend, tmp_path: Path, name: str) -> None:
        uri = write(backend.uri("a"), tmp_path).uri
        whole = FILES[name]
        for damage in (bytes([whole[0] ^ 1]) + whole[1:], whole[:-1], b"", whole + b"\0"):
            forget_copies(tmp_path)
            backend.put(uri, name, damage)
            with pytest.raises(ArtifactError, match=name):
                open_artifact(uri)
        backend.remove(uri, name)
        with pytest.raises(ArtifactError, match=name):
            open_artifact(uri)

    def test_swapped_files_are_refused(self, backend: Backend, tmp_path: Path) -> None:
        files = {"a.json": b"one", "b.json": b"two"}
        uri = write(backend.uri("a"), tmp_path, files).uri
        forget_copies(tmp_path)
        backend.put(uri, "a.json", files["b.json"])
        backend.put(uri, "b.json", files["a.json"])
        with pytest.raises(ArtifactError, match="altered"):
            open_artifact(uri)

    def test_a_cut_or_altered_manifest_is_refused(self, backend: Backend, tmp_path: Path) -> None:
        uri = write(backend.uri("a"), tmp_path).uri
        whole = backend.get(uri, "manifest.json")
        for damage in [whole[:length] for length in range(0, len(whole) - 1, 23)] + [b"[]", b"null", b"\xff\xfe"]:
            backend.put(uri, "manifest.json", damage)
            with pytest.raises(ArtifactError):
                open_artifact(uri)
        backend.put(uri, "manifest.json", whole.replace(b'"sha256": "', b'"sha256": "0', 1))
        with pytest.raises(ArtifactError):
            open_artifact(uri)

    def test_another_format_version_is_refused(self, backend: Backend, tmp_path: Path) -> None:
        uri = write(backend.uri("a"), tmp_path).uri
        manifest = json.loads(backend.get(uri, "manifest.json"))
        backend.put(uri, "manifest.json", json.dumps({**manifest, "format_version": 2}).encode())
        with pytest.raises(ArtifactError, match="format version 2"):
            open_artifact(uri)

    def test_an_artifact_inside_another_is_opened_by_itself(self, backend: Backend, tmp_path: Path) -> None:
        with write_artifact(backend.uri("a"), "compression", {}, make_context(tmp_path)) as draft:
            inner = write(str(draft.path / "model"), tmp_path)
        model = open_artifact(Ref(f"{backend.uri('a')}/model", inner.digest), kind="model")
        assert (model.path / "config.json").read_bytes() == FILES["config.json"]

    def test_a_moved_artifact_is_still_whole(self, backend: Backend, tmp_path: Path) -> None:
        written = write(backend.uri("a"), tmp_path)
        backend.copy(written.uri, backend.uri("moved"))
        assert open_artifact(backend.uri("moved")).digest == written.digest


def forget_copies(folder: Path) -> None:
    """What S3 is fetched into: with it an altered object would not be asked for again."""
    shutil.rmtree(folder / "home" / "cache", ignore_errors=True)


def test_s3_manifest_goes_up_last_and_every_object_with_its_checksum(s3_client, tmp_path, monkeypatch):
    from components.artifacts import s3_store
    from tests.components.artifacts.stores import S3Backend

    sent: list[tuple[str, str]] = []

    def record(params: dict, **_: object) -> None:
        sent.append((params["Key"].rpartition("/")[2], params["ChecksumSHA256"]))

    s3_client.meta.events.register("provide-client-params.s3.PutObject", record)
    monkeypatch.setattr(s3_store, "make_client", lambda settings: s3_client)
    monkeypatch.setenv("PENSTOCK_HOME", str(tmp_path / "home"))
    write(S3Backend(s3_client, tmp_path.name).uri("a"), tmp_path)
    assert [name for name, _ in sent][-1] == "manifest.json"
    assert len(sent) == len(FILES) + 1
    assert all(len(base64.b64decode(checksum)) == 32 for _, checksum in sent)


def test_s3_upload_killed_before_the_manifest_leaves_no_artifact(s3_client, tmp_path, monkeypatch):
    from components.artifacts.s3_store import S3Store
    from tests.components.artifacts.stores import S3Backend

    monkeypatch.setenv("PENSTOCK_HOME", str(tmp_path / "home"))
    uri = S3Backend(s3_client, tmp_path.name).uri("a")
    write(uri, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(S3Store, "_upload", fail)
        with pytest.raises(KeyboardInterrupt):
            write(uri, tmp_path, {"config.json": b"new"})
    assert not S3Store().exists(uri)


def fail(*_: object) -> None:
    raise KeyboardInterrupt


def test_s3_copy_altered_on_this_machine_is_fetched_again(s3_client, tmp_path, monkeypatch):
    from tests.components.artifacts.stores import S3Backend

    monkeypatch.setenv("PENSTOCK_HOME", str(tmp_path / "home"))
    written = write(S3Backend(s3_client, tmp_path.name).uri("a"), tmp_path)
    (written.path / "config.json").write_bytes(b"altered!")
    assert (open_artifact(written.ref).path / "config.json").read_bytes() == FILES["config.json"]


def test_s3_that_does_not_answer_is_unavailable(tmp_path, monkeypatch):
    from components.artifacts import s3_store
    from pipelines.processes import free_port

    monkeypatch.setenv("PENSTOCK_HOME", str(tmp_path))
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setattr(s3_store, "ATTEMPTS", 1)
    with pytest.raises(UnavailableError, match="cannot be reached"):
        open_artifact("s3://bucket/a")


@pytest.mark.parametrize("uri", ["s3://", "s3:///a", "s3://bucket", "s3://bucket/../a", "s3://bucket/a//b"])
def test_s3_address_without_a_plain_bucket_and_prefix_is_refused(s3_client, uri):
    with pytest.raises(ArtifactError):
        open_artifact(uri)
