"""Artifacts as local folders. A commit is one rename of a folder whose files are already on the disk."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from components.artifacts.manifest import MANIFEST_NAME, Manifest, parse_manifest, verify_files
from components.errors import ArtifactError


class LocalStore:
    """The store of paths and `file://` URIs."""

    @contextmanager
    def draft(self, uri: str) -> Iterator[Path]:
        target = local_path(uri)
        target.parent.mkdir(parents=True, exist_ok=True)
        # Beside the target, so that the commit is a rename within one file system.
        folder = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".partial", dir=target.parent))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def commit(self, folder: Path, uri: str, manifest: Manifest) -> Path:
        target = local_path(uri)
        for name in manifest.files:
            sync_path(folder / name)
        write_durably(folder / MANIFEST_NAME, manifest.to_json())
        sync_path(folder)
        replace_folder(folder, target)
        return target

    def fetch(self, uri: str) -> tuple[Path, Manifest]:
        folder = local_path(uri)
        try:
            text = (folder / MANIFEST_NAME).read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise ArtifactError(f"No artifact at {folder}: it has no readable {MANIFEST_NAME}.") from error
        manifest = parse_manifest(text, str(folder))
        verify_files(folder, manifest, str(folder))
        return folder, manifest

    def exists(self, uri: str) -> bool:
        return (local_path(uri) / MANIFEST_NAME).is_file()


def local_path(uri: str) -> Path:
    return Path(uri.removeprefix("file://")).absolute()


def sync_path(path: Path) -> None:
    """Waits until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_durably(path: Path, text: str) -> None:
    """Writes a small file so that a reader sees the old or the new one, also after a power loss."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    partial.write_text(text)
    sync_path(partial)
    partial.rename(path)
    sync_path(path.parent)


def replace_folder(folder: Path, target: Path) -> None:
    """Puts `folder` in the place of `target`; what was there is set aside first and removed last."""
    if target.exists():
        aside = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".replaced", dir=target.parent))
        target.rename(aside / "old")
        folder.rename(target)
        shutil.rmtree(aside, ignore_errors=True)
    else:
        folder.rename(target)
    sync_path(target.parent)
