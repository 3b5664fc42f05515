"""Sources in S3 or a compatible server (`AWS_ENDPOINT_URL`, the usual AWS variables for keys and region)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from components.data.source import SourceFile
from components.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa


def list_objects(uri: str) -> tuple[PurePosixPath | None, list[SourceFile]]:
    """Objects at an `s3://bucket/key`, below a prefix, or matching a glob; the root is None but for a prefix.

    Raises:
        DataError: If nothing is there or the server refuses.
    """
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    magic = min((key.index(sign) for sign in "*?[" if sign in key), default=len(key))
    try:
        objects = list(list_prefix(bucket, key[:magic]))
    except Exception as error:  # botocore builds its error classes at run time.
        raise DataError(
            f"{uri} cannot be listed ({error}); check AWS_ENDPOINT_URL and the keys.", field="data.source"
        ) from error
    root = f"s3://{bucket}/{key.rstrip('/')}"
    if magic < len(key):
        return None, found([file for file in objects if fnmatchcase(file.path, f"s3://{bucket}/{key}")], uri)
    exact = [file for file in objects if file.path == root]
    below = [file for file in objects if file.path.startswith(f"{root}/")]
    return (None, exact) if exact else (PurePosixPath(root), found(below, uri))


def found(files: list[SourceFile], uri: str) -> list[SourceFile]:
    if not files:
        raise DataError(f"No data at {uri}: there is no such object or prefix.", field="data.source")
    return files


def list_prefix(bucket: str, prefix: str) -> Iterator[SourceFile]:
    """Objects below a prefix, without the zero-byte markers that stand for folders."""
    import boto3

    pages = boto3.client("s3").get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
    for page in pages:
        for item in page.get("Contents", []):
            if not item["Key"].endswith("/"):
                yield SourceFile(f"s3://{bucket}/{item['Key']}", item["Size"], str(item["ETag"]))


def open_object(path: str) -> pa.NativeFile:
    """A seekable file over an object; only the ranges that are read are fetched."""
    from pyarrow import fs

    filesystem = fs.S3FileSystem(**endpoint(os.environ.get("AWS_ENDPOINT_URL")))
    return filesystem.open_input_file(path.removeprefix("s3://"))


def endpoint(url: str | None) -> dict[str, Any]:
    if not url:
        return {}
    scheme, _, host = url.partition("://")
    return {"endpoint_override": host.rstrip("/"), "scheme": scheme}
