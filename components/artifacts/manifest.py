"""The manifest: the SHA-256 and size of every file of an artifact. Its presence means that the artifact is whole."""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from components.errors import ArtifactError

MANIFEST_NAME = "manifest.json"
FORMAT_VERSION = 1
# Names of artifacts are ours; a file system may hold more, an object store or another file system may not.
PART = re.compile(r"[A-Za-z0-9._+=@-]{1,200}")
MAX_DEPTH = 16


@dataclass(frozen=True)
class FileEntry:
    """One file: its SHA-256 in hex, its size, and whether it counts for the artifact's digest.

    Weights, config and preprocessing are content; metrics, logs and reports are not.
    """

    sha256: str
    size_bytes: int
    content: bool = True


@dataclass(frozen=True)
class Manifest:
    """What `manifest.json` holds."""

    kind: str
    digest: str
    files: Mapping[str, FileEntry]
    inputs: Mapping[str, str] = field(default_factory=dict)
    spec_sha256: str = ""
    code_version: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    format_version: int = FORMAT_VERSION

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1, sort_keys=True)

    @property
    def size_bytes(self) -> int:
        """Bytes of the content files."""
        return sum(entry.size_bytes for entry in self.files.values() if entry.content)


def parse_manifest(text: str | bytes, where: str) -> Manifest:
    """Reads `manifest.json`, checking every file name in it.

    Raises:
        ArtifactError: If it is no manifest of a known version, or names a file outside its folder.
    """
    try:
        raw = json.loads(text)
        files = {checked_name(name, where): FileEntry(**entry) for name, entry in raw.pop("files").items()}
        manifest = Manifest(files=files, **raw)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ArtifactError(f"{where} has a manifest that cannot be read ({error}); run its stage again.") from error
    if manifest.format_version != FORMAT_VERSION:
        raise ArtifactError(
            f"{where} has format version {manifest.format_version}; this release reads {FORMAT_VERSION}."
        )
    if manifest.digest != content_digest(files):
        raise ArtifactError(f"{where} has a manifest whose digest does not match its files; run its stage again.")
    return manifest


def checked_name(name: str, where: str) -> str:
    """Returns `name` if it is a plain relative POSIX path that stays below its folder, else raises ArtifactError.

    An allow-list: every way to leave a folder (dots, drives, encodings, look-alike characters, devices) needs a
    character or a part that is not on it.
    """
    parts = name.split("/") if isinstance(name, str) else [""]
    if len(parts) > MAX_DEPTH or not all(PART.fullmatch(part) and part not in (".", "..") for part in parts):
        raise ArtifactError(
            f"{where} names the file {str(name)[:80]!r}, which is not a plain path inside the artifact; allowed are "
            "letters, digits and . _ - + = @ between slashes."
        )
    return name


def content_digest(files: Mapping[str, FileEntry]) -> str:
    """SHA-256 over the sorted (path, sha256) of the content files: no time, run or absolute path enters."""
    hasher = hashlib.sha256()
    for name in sorted(files):
        if files[name].content:
            hasher.update(f"{name}\0{files[name].sha256}\n".encode())
    return hasher.hexdigest()


def file_sha256(path: Path) -> str:
    """SHA-256 of a regular file; symbolic links are refused, so that nothing outside the folder is read."""
    # Not blocking: a pipe in the place of a file would otherwise hold us up before we see that it is one.
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    with os.fdopen(descriptor, "rb") as handle:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(f"{path} is not a regular file")
        return hashlib.file_digest(handle, "sha256").hexdigest()


def list_files(folder: Path) -> list[str]:
    """Relative POSIX names of all below `folder` that is no folder, sorted; its own manifest is left out, those of
    artifacts inside it are not."""
    names = []
    for parent, folders, files in os.walk(folder):
        links = [name for name in folders if Path(parent, name).is_symlink()]
        names += [Path(parent, name).relative_to(folder).as_posix() for name in [*files, *links]]
    return sorted(name for name in names if name != MANIFEST_NAME)


def scan_files(folder: Path, not_content: frozenset[str]) -> dict[str, FileEntry]:
    """Hashes every file below `folder`.

    Raises:
        ArtifactError: If something there is no regular file, or has another name outside the folder.
    """
    entries = {}
    for name in list_files(folder):
        path = folder / checked_name(name, str(folder))
        facts = path.lstat()
        if not stat.S_ISREG(facts.st_mode) or facts.st_nlink > 1:
            raise ArtifactError(f"{folder}: {name} is a link or no regular file; an artifact holds files of its own.")
        entries[name] = FileEntry(file_sha256(path), facts.st_size, name not in not_content)
    return entries


def path_chain(folder: Path, name: str) -> list[Path]:
    """The file and the folders above it, up to but without `folder`."""
    relative = PurePosixPath(name)
    return [folder / part for part in [relative, *relative.parents] if str(part) != "."]


def verify_files(folder: Path, manifest: Manifest, where: str) -> None:
    """Compares every file with the manifest.

    Raises:
        ArtifactError: Naming the first file that is absent, of another size, altered, no regular file, or not in the
            manifest: a reader that picks its file by what is there must not be handed one that nobody vouched for.
    """
    unknown = set(list_files(folder)) - set(manifest.files)
    if unknown:
        raise ArtifactError(f"{where}: {min(unknown)[:80]!r} is not in its manifest.")
    for name, entry in manifest.files.items():
        path = folder / checked_name(name, where)
        if any(parent.is_symlink() for parent in path_chain(folder, name)):
            raise ArtifactError(f"{where}: {name} is a symbolic link; an artifact holds regular files only.")
        try:
            size_bytes, sha256 = path.stat().st_size, file_sha256(path)
        except OSError as error:
            raise ArtifactError(f"{where}: {name} cannot be read ({error.strerror or error}).") from error
        if size_bytes != entry.size_bytes:
            raise ArtifactError(f"{where}: {name} has {size_bytes} bytes, its manifest says {entry.size_bytes}.")
        if sha256 != entry.sha256:
            raise ArtifactError(f"{where}: {name} was altered: its SHA-256 is not the one in the manifest.")
