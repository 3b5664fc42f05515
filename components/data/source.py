"""Finds what a source string names: its kind and its files, in an order that does not depend on the file system."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

from components.errors import DataError

SourceKind = Literal["csv", "jsonl", "parquet", "text", "images", "digits"]
SUFFIX_KINDS: dict[str, SourceKind] = {".csv": "csv", ".jsonl": "jsonl", ".parquet": "parquet", ".txt": "text"}
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp")
DIGITS = "builtin://digits"
PYTHON_STDLIB = "builtin://python-stdlib"
ALLOWED = (
    "a .csv, .jsonl, .parquet or .txt file, a folder with one folder of images a class, a glob of these, s3://..., "
    f"{DIGITS} or {PYTHON_STDLIB}"
)


@dataclass(frozen=True)
class SourceFile:
    """One file. `stamp` changes when it does (modification time and inode, or S3's ETag); `label` is its folder's."""

    path: str
    size_bytes: int
    stamp: str
    label: str | None = None


@dataclass(frozen=True)
class Source:
    """What is read."""

    uri: str
    kind: SourceKind
    files: tuple[SourceFile, ...]


def find_source(uri: str, base: Path | None = None) -> Source:
    """Lists the files behind `uri`; a relative path counts from `base` (the working directory).

    Raises:
        DataError: If nothing is there, it is empty, or it is of no known or of several kinds.
    """
    if uri == PYTHON_STDLIB:
        return Source(uri, "text", tuple(standard_library()))
    if uri.startswith("builtin://"):
        return Source(uri, "digits", (digits_file(uri),))
    root: Path | PurePosixPath | None
    if uri.startswith("s3://"):
        from components.data.s3_source import list_objects

        root, files = list_objects(uri)
    else:
        root, files = list_local(uri, base)
    kind, chosen = choose_kind(uri, files)
    if kind == "images":
        chosen = [labelled(file, root) for file in chosen]
    check_sizes(kind, chosen)
    return Source(uri, kind, tuple(sorted(chosen, key=lambda file: file.path)))


def digits_file(uri: str) -> SourceFile:
    """scikit-learn's own data file, found without importing scikit-learn (which takes seconds)."""
    from importlib.util import find_spec

    if uri != DIGITS:
        raise DataError(
            f"data.source is {uri}; the built-in sources are {DIGITS} and {PYTHON_STDLIB}.", field="data.source"
        )
    spec = find_spec("sklearn")
    if spec is None or not spec.submodule_search_locations:
        raise DataError(f"{DIGITS} needs scikit-learn, which is not installed.", field="data.source")
    return local_file(Path(spec.submodule_search_locations[0]) / "datasets" / "data" / "digits.csv.gz")


def standard_library() -> Iterable[SourceFile]:
    """The source files of this Python's own standard library, without its tests and what was installed beside it."""
    import sysconfig

    folder = Path(sysconfig.get_path("stdlib"))
    left_out = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}
    for path in sorted(folder.rglob("*.py")):
        if not left_out & set(path.relative_to(folder).parts) and path.stat().st_size:
            yield local_file(path)


def local_file(path: Path) -> SourceFile:
    status = path.stat()
    return SourceFile(str(path), status.st_size, f"{status.st_mtime_ns}:{status.st_ino}")


def list_local(uri: str, base: Path | None) -> tuple[Path | None, list[SourceFile]]:
    """The root below which folders name classes (None for a glob), and all regular files."""
    path = Path(os.path.abspath((base or Path.cwd()) / Path(uri.removeprefix("file://")).expanduser()))
    if path.is_dir():
        return path, [local_file(file) for file in walk_files(path)]
    if path.is_file():
        return None, [local_file(path)]
    found = [Path(name) for name in glob.glob(str(path), recursive=True)] if glob.has_magic(str(path)) else []
    files = [file for file in found if file.is_file()]
    if not files:
        raise DataError(f"No data at {path}: there is no such file or folder; give {ALLOWED}.", field="data.source")
    return None, [local_file(file) for file in files]


def walk_files(folder: Path) -> Iterable[Path]:
    """Files below `folder` except hidden ones; links to folders are not followed, so there is no cycle."""
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (Path(parent) / name for name in names if not name.startswith("."))


def choose_kind(uri: str, files: list[SourceFile]) -> tuple[SourceKind, list[SourceFile]]:
    """The one kind of the known files; files of unknown suffix, and notes beside other data, are left out."""
    by_kind: dict[SourceKind, list[SourceFile]] = {}
    for file in files:
        suffix = PurePosixPath(file.path).suffix.lower()
        kind = "images" if suffix in IMAGE_SUFFIXES else SUFFIX_KINDS.get(suffix)
        if kind is not None:
            by_kind.setdefault(kind, []).append(file)
    if len(by_kind) > 1:
        # A note beside the data; texts are a source only by themselves.
        by_kind.pop("text", None)
    if not by_kind:
        raise DataError(f"{uri} holds no file of a known kind; give {ALLOWED}.", field="data.source")
    if len(by_kind) > 1:
        kinds = " and ".join(sorted(by_kind))
        raise DataError(f"{uri} mixes {kinds} files; name those of one kind, with a glob.", field="data.source")
    return next(iter(by_kind.items()))


def labelled(file: SourceFile, root: Path | PurePosixPath | None) -> SourceFile:
    """Adds the class: the first folder below `root`, or for a glob the folder the image lies in."""
    path = PurePosixPath(file.path)
    parts = path.relative_to(root).parts if root is not None else path.parts[-2:]
    if len(parts) < 2:
        raise DataError(
            f"{file.path} lies in no class folder; put each image into a folder named by its class.",
            field="data.source",
        )
    return SourceFile(file.path, file.size_bytes, file.stamp, parts[0])


def check_sizes(kind: SourceKind, files: list[SourceFile]) -> None:
    """Refuses an empty table; an empty image is a corrupt sample and counted as one."""
    empty = next((file for file in files if file.size_bytes == 0), None)
    if kind != "images" and empty is not None:
        raise DataError(f"{empty.path} is empty (0 bytes).", field="data.source")
