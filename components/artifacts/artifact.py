"""Writing and reading artifacts, whatever store they lie in.

with write_artifact(output, "dataset", inputs, context) as draft:
    (draft.path / "schema.json").write_text(...)
artifact = draft.artifact                       # committed, digest known

dataset = open_artifact(ref, kind="dataset")    # verified; dataset.path is a local folder
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from components.artifacts.manifest import Manifest, content_digest, scan_files
from components.artifacts.store import store_for
from components.context import Context
from components.errors import ArtifactError


@dataclass(frozen=True)
class Ref:
    """What is handed from stage to stage: where an artifact lies and what it must be."""

    uri: str
    digest: str

    def to_json(self) -> str:
        return json.dumps({"uri": self.uri, "digest": self.digest})

    @classmethod
    def from_json(cls, text: str) -> Ref:
        raw = json.loads(text)
        return cls(uri=raw["uri"], digest=raw["digest"])


@dataclass(frozen=True)
class Artifact:
    """A verified artifact with a local copy at `path`."""

    uri: str
    path: Path
    manifest: Manifest

    @property
    def kind(self) -> str:
        return self.manifest.kind

    @property
    def digest(self) -> str:
        return self.manifest.digest

    @property
    def ref(self) -> Ref:
        return Ref(self.uri, self.digest)

    def read_json(self, name: str) -> Any:
        """The parsed JSON file `name` of this artifact."""
        return json.loads((self.path / name).read_text())


@dataclass
class Draft:
    """An artifact being written. Files go below `path`; names in `not_content` do not enter the digest.

    Set `metadata` for small facts that readers want without opening files. `artifact` is there after the commit.
    """

    path: Path
    not_content: set[str] = field(default_factory=set)
    metadata: dict[str, Any] = field(default_factory=dict)
    artifact: Artifact | None = None

    def write_json(self, name: str, value: Any, content: bool = True) -> None:
        """Writes `value` as the JSON file `name` with sorted keys, so that equal values give equal bytes."""
        target = self.path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(json.dumps(value, indent=1, sort_keys=True))
        if not content:
            self.not_content.add(name)


@contextmanager
def write_artifact(output: str, kind: str, inputs: Mapping[str, Ref], context: Context) -> Iterator[Draft]:
    """Yields a draft folder and commits it as the artifact at the URI `output` when the block ends without error.

    Nothing is visible at `output` before the manifest is; an error or a kill leaves what was there before.
    """
    store = store_for(output)
    with store.draft(output) as folder:
        draft = Draft(folder)
        yield draft
        files = scan_files(folder, frozenset(draft.not_content))
        manifest = Manifest(
            kind=kind,
            digest=content_digest(files),
            files=files,
            inputs={name: ref.digest for name, ref in inputs.items()},
            spec_sha256=context.spec_sha256,
            code_version=context.code_version,
            metadata=draft.metadata,
        )
        path = store.commit(folder, output, manifest)
    draft.artifact = Artifact(output, path, manifest)


def open_artifact(ref: Ref | str, kind: str | None = None) -> Artifact:
    """Fetches and verifies an artifact: every file is compared with the manifest before anything is used.

    Args:
        ref: A Ref, or a bare URI when no digest is known (a folder a user names).
        kind: The kind it must have.

    Raises:
        ArtifactError: If it is absent, torn, altered, of another kind or of another digest.
    """
    uri, digest = (ref, None) if isinstance(ref, str) else (ref.uri, ref.digest)
    path, manifest = store_for(uri).fetch(uri)
    if digest is not None and manifest.digest != digest:
        raise ArtifactError(f"{uri} has digest {manifest.digest[:12]}, but {digest[:12]} was asked for.")
    if kind is not None and manifest.kind != kind:
        raise ArtifactError(f"{uri} is a {manifest.kind}, but a {kind} was asked for.")
    return Artifact(uri, path, manifest)


def check_artifact(ref: Ref) -> str | None:
    """Why the artifact cannot be used, or None when it is whole. Used to drop cached results that have rotted."""
    try:
        open_artifact(ref)
    except ArtifactError as error:
        return error.message
    return None
