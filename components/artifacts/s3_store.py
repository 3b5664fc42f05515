"""Artifacts in S3 or a compatible server: the files under the artifact's prefix, the manifest as the last of them.

Settings come from the usual AWS variables; `AWS_ENDPOINT_URL` names another server than Amazon's. What is fetched lies
under `PENSTOCK_HOME/cache/s3`, one folder a manifest, and is verified against it each time it is used.
"""

from __future__ import annotations

import base64
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from components.artifacts.local_store import check_folder, replace_folder, write_durably
from components.artifacts.manifest import MANIFEST_NAME, FileEntry, Manifest, checked_name, parse_manifest
from components.errors import ArtifactError, UnavailableError

CONNECT_TIMEOUT_S = 5
READ_TIMEOUT_S = 15
ATTEMPTS = 4
MAX_MANIFEST_BYTES = 64 << 20
# Above this a file goes up in parts, and the library computes the checksum of each.
SINGLE_PUT_BYTES = 64 << 20
SETTINGS = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_PROFILE",
            "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")  # fmt: skip
ABSENT = frozenset({"404", "NoSuchKey", "NoSuchBucket", "NotFound"})


class S3Store:
    """The store of `s3://BUCKET/PREFIX` URIs."""

    def __init__(self) -> None:
        self.client = make_client(tuple(os.environ.get(name) for name in SETTINGS))

    @contextmanager
    def draft(self, uri: str) -> Iterator[Path]:
        split_uri(uri)
        folder = Path(tempfile.mkdtemp(prefix="draft.", suffix=".partial", dir=cache_folder()))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def commit(self, folder: Path, uri: str, manifest: Manifest) -> Path:
        """Uploads the files and then the manifest; a manifest that is there already is removed first, because it
        would not fit the files."""
        bucket, prefix = split_uri(uri)
        text = manifest.to_json()
        with told(uri):
            before = self._read_manifest(bucket, prefix)
            if before is not None:
                self.client.delete_object(Bucket=bucket, Key=f"{prefix}/{MANIFEST_NAME}")
            for name, entry in manifest.files.items():
                self._upload(folder / name, bucket, f"{prefix}/{checked_name(name, uri)}", entry)
            self._put(text.encode(), bucket, f"{prefix}/{MANIFEST_NAME}", hashlib.sha256(text.encode()).digest())
        write_durably(folder / MANIFEST_NAME, text)
        return keep(folder, text)

    def fetch(self, uri: str) -> tuple[Path, Manifest]:
        bucket, prefix = split_uri(uri)
        with told(uri):
            text = self._read_manifest(bucket, prefix)
        if text is None:
            raise ArtifactError(f"No artifact at {uri}: it has no {MANIFEST_NAME}.")
        manifest = parse_manifest(text, uri)
        kept = kept_path(text)
        try:
            return kept, check_folder(kept, text)
        except ArtifactError:
            pass  # not there yet, or altered since: it is fetched again
        with self.draft(uri) as folder:
            with told(uri):
                self._download(folder, bucket, prefix, manifest)
            (folder / MANIFEST_NAME).write_text(text)
            check_download(folder, text, uri)
            return keep(folder, text), manifest

    def exists(self, uri: str) -> bool:
        bucket, prefix = split_uri(uri)
        with told(uri):
            return self._head(bucket, f"{prefix}/{MANIFEST_NAME}") is not None

    def _head(self, bucket: str, key: str) -> dict[str, Any] | None:
        from botocore.exceptions import ClientError

        try:
            return self.client.head_object(Bucket=bucket, Key=key)
        except ClientError as error:
            if error.response["Error"]["Code"] in ABSENT:
                return None
            raise

    def _read_manifest(self, bucket: str, prefix: str) -> str | None:
        from botocore.exceptions import ClientError

        try:
            answer = self.client.get_object(Bucket=bucket, Key=f"{prefix}/{MANIFEST_NAME}")
        except ClientError as error:
            if error.response["Error"]["Code"] in ABSENT:
                return None
            raise
        return answer["Body"].read(MAX_MANIFEST_BYTES).decode("utf-8", "replace")

    def _upload(self, path: Path, bucket: str, key: str, entry: FileEntry) -> None:
        if entry.size_bytes <= SINGLE_PUT_BYTES:
            self._put(path.read_bytes(), bucket, key, bytes.fromhex(entry.sha256))
        else:
            self.client.upload_file(str(path), bucket, key, ExtraArgs={"ChecksumAlgorithm": "SHA256"})

    def _put(self, body: bytes, bucket: str, key: str, sha256: bytes) -> None:
        # The server compares, so that bytes lost on the way are an error now and not when somebody reads them.
        self.client.put_object(Bucket=bucket, Key=key, Body=body, ChecksumSHA256=base64.b64encode(sha256).decode())

    def _download(self, folder: Path, bucket: str, prefix: str, manifest: Manifest) -> None:
        for name, entry in manifest.files.items():
            path = folder / checked_name(name, f"s3://{bucket}/{prefix}")
            path.parent.mkdir(parents=True, exist_ok=True)
            facts = self._head(bucket, f"{prefix}/{name}")
            size_bytes = facts["ContentLength"] if facts else None
            if size_bytes != entry.size_bytes:
                found = "is absent" if size_bytes is None else f"has {size_bytes} bytes"
                raise ArtifactError(f"s3://{bucket}/{prefix}: {name} {found}, its manifest says {entry.size_bytes}.")
            self.client.download_file(bucket, f"{prefix}/{name}", str(path))


@cache
def make_client(settings: tuple[str | None, ...]) -> Any:
    """A client that gives up in bounded time; one a process while the variables in SETTINGS stay as they are."""
    import boto3
    from botocore.config import Config

    style = "path" if os.environ.get("AWS_ENDPOINT_URL") or os.environ.get("AWS_ENDPOINT_URL_S3") else "auto"
    config = Config(
        connect_timeout=CONNECT_TIMEOUT_S,
        read_timeout=READ_TIMEOUT_S,
        retries={"mode": "standard", "total_max_attempts": ATTEMPTS},
        s3={"addressing_style": style},
        # Only the checksums we ask for: some servers store the library's own trailers inside the object.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
    )
    return boto3.client("s3", region_name=os.environ.get("AWS_REGION") or None, config=config)


@contextmanager
def told(uri: str) -> Iterator[None]:
    """Turns what boto3 raises into our errors: absent is an ArtifactError, anything else a service that fails."""
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except ClientError as error:
        code = error.response.get("Error", {}).get("Code", "unknown")
        if code in ABSENT:
            raise ArtifactError(f"{uri} cannot be used: S3 answers {code}; check the bucket and the path.") from error
        raise UnavailableError(
            f"S3 refuses {uri} ({code}); check the keys, the bucket and AWS_ENDPOINT_URL."
        ) from error
    except (BotoCoreError, Boto3Error) as error:
        raise UnavailableError(
            f"S3 cannot be reached for {uri} ({type(error).__name__}); check AWS_ENDPOINT_URL and the keys."
        ) from error


def split_uri(uri: str) -> tuple[str, str]:
    """Bucket and prefix of `s3://BUCKET/PREFIX`.

    Raises:
        ArtifactError: If one is missing or has characters that a prefix of ours has not.
    """
    bucket, _, prefix = uri.removeprefix("s3://").partition("/")
    if not bucket:
        raise ArtifactError(f"{uri} has no bucket; write s3://BUCKET/PREFIX.")
    return checked_name(bucket, uri), checked_name(prefix, uri)


def cache_folder() -> Path:
    folder = Path(os.environ.get("PENSTOCK_HOME") or ".penstock").expanduser().absolute() / "cache" / "s3"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return folder


def kept_path(manifest_text: str) -> Path:
    """Where an artifact is kept: named by the whole manifest, as two may differ in files that are not content."""
    return cache_folder() / hashlib.sha256(manifest_text.encode()).hexdigest()


def keep(folder: Path, manifest_text: str) -> Path:
    """Moves a whole artifact into the cache; another process may have been faster with the same one."""
    target = kept_path(manifest_text)
    try:
        check_folder(target, manifest_text)
    except ArtifactError:
        replace_folder(folder, target)
    return target


def check_download(folder: Path, manifest_text: str, uri: str) -> None:
    """Raises ArtifactError naming the object, not our copy of it."""
    try:
        check_folder(folder, manifest_text)
    except ArtifactError as error:
        raise ArtifactError(error.message.replace(str(folder), uri)) from error
