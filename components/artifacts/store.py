"""Where artifacts lie. Two backends with one contract test: a local folder and S3."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from components.artifacts.manifest import Manifest


class Store(Protocol):
    """Keeps artifacts by URI."""

    def draft(self, uri: str) -> AbstractContextManager[Path]:
        """An empty local folder to fill; it is removed when the block ends, whatever happens."""

    def commit(self, folder: Path, uri: str, manifest: Manifest) -> Path:
        """Makes `folder` the artifact at `uri`, manifest last; returns a local folder that holds it."""

    def fetch(self, uri: str) -> tuple[Path, Manifest]:
        """A local folder holding the verified artifact. Raises ArtifactError if absent, torn or altered."""

    def exists(self, uri: str) -> bool:
        """Whether a manifest lies at `uri`."""


def store_for(uri: str) -> Store:
    """The store that `uri` belongs to: `s3://...` or a local path (with or without `file://`)."""
    if uri.startswith("s3://"):
        from components.artifacts.s3_store import S3Store

        return S3Store()
    from components.artifacts.local_store import LocalStore

    return LocalStore()
