"""What the local store promises beyond the common contract: kills, replacements, links, leftovers."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from components.artifacts import local_store, open_artifact, write_artifact
from components.artifacts.local_store import LocalStore, replace_folder
from components.errors import ArtifactError
from tests.components.artifacts.stores import FILES, make_context, write


def link_to_copy(path: Path, outside: Path) -> None:
    outside.write_bytes(path.read_bytes())
    path.unlink()
    path.symlink_to(outside)


def test_a_link_is_refused_even_if_what_it_names_is_right(tmp_path):
    written = write(str(tmp_path / "a"), tmp_path)
    link_to_copy(written.path / "config.json", tmp_path / "outside")
    with pytest.raises(ArtifactError, match="symbolic link"):
        open_artifact(written.ref)


def test_a_linked_folder_inside_is_refused(tmp_path):
    written = write(str(tmp_path / "a"), tmp_path)
    (written.path / "weights").rename(tmp_path / "outside")
    (written.path / "weights").symlink_to(tmp_path / "outside")
    with pytest.raises(ArtifactError):
        open_artifact(written.ref)


@pytest.mark.parametrize(
    "make", [os.mkfifo, lambda path: os.mknod(path, 0o600), Path.mkdir], ids=["pipe", "empty", "folder"]
)
def test_something_else_in_the_place_of_a_file_is_refused(tmp_path, make):
    written = write(str(tmp_path / "a"), tmp_path)
    (written.path / "config.json").unlink()
    make(written.path / "config.json")
    with pytest.raises(ArtifactError, match=r"config\.json"):
        open_artifact(written.ref)


def test_a_file_that_the_manifest_does_not_name_is_refused(tmp_path):
    written = write(str(tmp_path / "a"), tmp_path)
    (written.path / "model.onnx").write_bytes(b"planted")
    with pytest.raises(ArtifactError, match=r"'model\.onnx' is not in its manifest"):
        open_artifact(written.ref)


@pytest.mark.parametrize("link", ["symbolic", "hard", "pipe"])
def test_a_draft_with_a_link_is_not_committed(tmp_path, link):
    (tmp_path / "secret").write_text("outside")
    with pytest.raises(ArtifactError, match="link"):
        with write_artifact(str(tmp_path / "a"), "model", {}, make_context(tmp_path)) as draft:
            place = draft.path / "config.json"
            {"symbolic": lambda: place.symlink_to(tmp_path / "secret"), "pipe": lambda: os.mkfifo(place),
             "hard": lambda: place.hardlink_to(tmp_path / "secret")}[link]()  # fmt: skip
    assert not (tmp_path / "a").exists()


def test_a_draft_is_private_and_on_the_disk_before_it_is_seen(tmp_path, monkeypatch):
    synced: list[Path] = []
    monkeypatch.setattr(local_store, "sync_path", synced.append)
    monkeypatch.setattr(local_store, "replace_folder", lambda folder, target: synced.append(target))
    with LocalStore().draft(str(tmp_path / "a")) as folder:
        assert folder.stat().st_mode & 0o777 == 0o700
    write(str(tmp_path / "a"), tmp_path)
    names = [path.name for path in synced]
    assert names[-1] == "a"
    assert {*(Path(name).name for name in FILES), "weights"} <= set(names)


SCRIPT = """
import os, sys
from pathlib import Path
from components.artifacts import local_store
from tests.components.artifacts.stores import write

step, exchange = int(sys.argv[2]), sys.argv[3] == "exchange"
steps = [0]

def mortal(function):
    def call(*arguments, **named):
        steps[0] += 1
        if steps[0] == step:
            os.kill(os.getpid(), 9)
        return function(*arguments, **named)
    return call

if not exchange:
    local_store.exchange = lambda first, second: False
for name in ("sync_path", "rename_into", "set_aside", "remove_leftovers", "exchange"):
    setattr(local_store, name, mortal(getattr(local_store, name)))
Path.rename = mortal(Path.rename)
write(str(Path(sys.argv[1]) / "a"), Path(sys.argv[1]), {"config.json": b"new"})
"""


@pytest.mark.parametrize("way", ["exchange", "two renames"])
def test_a_writer_killed_at_any_step_leaves_the_old_or_the_new_artifact(tmp_path, way):
    old = write(str(tmp_path / "a"), tmp_path)
    seen, step, code = [], 1, -9
    while code == -9:
        code = subprocess.run([sys.executable, "-c", SCRIPT, str(tmp_path), str(step), way], cwd=Path.cwd()).returncode
        seen.append(open_artifact(old.uri).digest == old.digest)
        step += 1
    assert code == 0
    assert len(seen) > 8
    assert seen == sorted(seen, reverse=True)  # the old one up to some step, the new one from there on
    assert (seen[0], seen[-1]) == (True, False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a"]


def test_readers_of_an_artifact_that_is_being_replaced_see_one_or_the_other(tmp_path):
    uri = str(tmp_path / "a")
    digests = {write(uri, tmp_path, {"config.json": content}).digest for content in (b"one", b"two")}
    stop = threading.Event()

    def replace() -> None:
        while not stop.is_set():
            for content in (b"one", b"two"):
                write(uri, tmp_path, {"config.json": content})

    writer = threading.Thread(target=replace)
    writer.start()
    seen = set()
    try:
        for _ in range(300):
            seen.add(open_artifact(uri).digest)
    finally:
        stop.set()
        writer.join()
    assert seen <= digests


def test_leftovers_of_a_dead_writer_are_removed_and_those_of_a_live_one_are_not(tmp_path):
    dead = tmp_path / ".a.dead.partial"
    dead.mkdir()
    with LocalStore().draft(str(tmp_path / "a")) as live, LocalStore().draft(str(tmp_path / "a")) as second:
        assert live.exists() and second.exists()
        assert not dead.exists()


def test_replacing_keeps_open_files_readable(tmp_path):
    for name in ("new", "target"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    with (tmp_path / "target" / "file").open() as reader:
        replace_folder(tmp_path / "new", tmp_path / "target")
        assert reader.read() == "target"
    assert (tmp_path / "target" / "file").read_text() == "new"
