"""Both stores behind one face, so that one contract is tested against each."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components.artifacts import Artifact, write_artifact
from components.context import Context

FILES = {"config.json": b'{"a": 1}', "weights/model.bin": bytes(range(256)) * 8, "metrics.json": b"{}"}
BUCKET = "artifacts"


def make_context(folder: Path) -> Context:
    return Context("run-1", "train", folder, folder, folder, "spec", "0.1.0+code")


@dataclass
class LocalBackend:
    """A folder."""

    root: Path
    name = "local"

    def uri(self, name: str) -> str:
        return str(self.root / name)

    def put(self, uri: str, name: str, content: bytes) -> None:
        path = Path(uri, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)

    def get(self, uri: str, name: str) -> bytes:
        return Path(uri, name).read_bytes()

    def remove(self, uri: str, name: str) -> None:
        Path(uri, name).unlink()

    def copy(self, source: str, target: str) -> None:
        shutil.copytree(source, target, dirs_exist_ok=True)


@dataclass
class S3Backend:
    """A bucket of moto's server, spoken to with a client of our own."""

    client: Any
    prefix: str
    name = "s3"

    def uri(self, name: str) -> str:
        return f"s3://{BUCKET}/{self.prefix}/{name}"

    def key(self, uri: str, name: str) -> str:
        return f"{uri.removeprefix(f's3://{BUCKET}/')}/{name}"

    def put(self, uri: str, name: str, content: bytes) -> None:
        self.client.put_object(Bucket=BUCKET, Key=self.key(uri, name), Body=content)

    def get(self, uri: str, name: str) -> bytes:
        return self.client.get_object(Bucket=BUCKET, Key=self.key(uri, name))["Body"].read()

    def remove(self, uri: str, name: str) -> None:
        self.client.delete_object(Bucket=BUCKET, Key=self.key(uri, name))

    def copy(self, source: str, target: str) -> None:
        found = self.client.list_objects_v2(Bucket=BUCKET, Prefix=self.key(source, ""))
        for item in found.get("Contents", []):
            name = item["Key"].removeprefix(self.key(source, ""))
            self.put(target, name, self.get(source, name))


Backend = LocalBackend | S3Backend


def write(uri: str, folder: Path, files: Mapping[str, bytes] = FILES, kind: str = "model") -> Artifact:
    """An artifact of some files; `metrics.json` is not content."""
    with write_artifact(uri, kind, {}, make_context(folder)) as draft:
        for name, content in files.items():
            path = draft.path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        draft.not_content.add("metrics.json")
        draft.metadata["parameters"] = 3
    assert draft.artifact is not None
    return draft.artifact
