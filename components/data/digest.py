"""The digest of a source's content, with a cache so that unchanged files are not read twice."""

from __future__ import annotations

import hashlib
import json
import os
import time
from pathlib import Path

from components.artifacts.manifest import file_sha256
from components.data.config import DataConfig
from components.data.source import Source, SourceFile, find_source
from components.tasks.tokenizers import BUILT

RACY_NS = 2_000_000_000
"""A file changed this recently is not cached: it might change again within the clock's step."""


def source_digest(config: DataConfig, base: Path | None, cache_file: Path) -> str:
    """SHA-256 over the names below the source and the content of its files; S3 objects count by their ETag. A tokenizer
    in a folder counts too.

    Args:
        config: The `data` section.
        base: Folder a relative source counts from; None is the working directory.
        cache_file: JSON of (path, size, mtime_ns, inode) -> SHA-256; made if absent, replaced if unreadable.

    Raises:
        DataError: If the source is missing or empty.
    """
    return digest_inputs(find_source(config.source, base), config, cache_file)


def digest_inputs(source: Source, config: DataConfig, cache_file: Path) -> str:
    """As `source_digest`, of a source that was found already."""
    digest, folder = digest_source(source, cache_file), Path(config.text.tokenizer)
    if config.text.tokenizer in BUILT or not folder.is_dir():
        return digest
    files = (file_sha256(path) for path in sorted(folder.glob("tokenizer*.json")))
    return hashlib.sha256("\0".join([digest, *files]).encode()).hexdigest()


def digest_source(source: Source, cache_file: Path) -> str:
    """Of the source alone."""
    cache = read_cache(cache_file)
    known: dict[str, list[str]] = {}
    hasher = hashlib.sha256(f"{source.kind}\0".encode())
    for file, name in zip(source.files, relative_names(source), strict=True):
        sha256 = file.stamp if file.path.startswith("s3://") else file_digest(file, cache, known)
        hasher.update(f"{name}\0{file.size_bytes}\0{sha256}\n".encode())
    if known:
        write_cache(cache_file, {**cache, **known})
    return hasher.hexdigest()


def relative_names(source: Source) -> list[str]:
    """Names that stay when the whole source moves: without the folder that all files share."""
    paths = [file.path for file in source.files]
    shared = os.path.commonpath([os.path.dirname(path) for path in paths])
    # Image classes are folder names, so the name of a lone class folder must stay in.
    return [path[len(shared) :] if source.kind != "images" else "/".join(path.split("/")[-2:]) for path in paths]


def file_digest(file: SourceFile, cache: dict[str, list[str]], known: dict[str, list[str]]) -> str:
    mark = f"{file.size_bytes}:{file.stamp}"
    entry = cache.get(file.path)
    if entry is not None and entry[0] == mark:
        return entry[1]
    sha256 = file_sha256(Path(os.path.realpath(file.path)))
    if time.time_ns() - int(file.stamp.split(":")[0]) > RACY_NS:
        known[file.path] = [mark, sha256]
    return sha256


def read_cache(cache_file: Path) -> dict[str, list[str]]:
    """The cache, or an empty one where there is none that can be read: it only saves time."""
    try:
        raw = json.loads(cache_file.read_text())
        return {path: [str(mark), str(sha256)] for path, (mark, sha256) in raw.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def write_cache(cache_file: Path, cache: dict[str, list[str]]) -> None:
    cache_file.parent.mkdir(parents=True, exist_ok=True)
    partial = cache_file.with_name(f".{cache_file.name}.{os.getpid()}.partial")
    partial.write_text(json.dumps(cache))
    partial.replace(cache_file)
