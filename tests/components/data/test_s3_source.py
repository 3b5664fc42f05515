"""Sources in an S3-compatible server."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from components.data.config import DataConfig
from components.data.digest import source_digest
from components.data.source import find_source
from components.errors import DataError
from tests.builders import build_dataset

pytestmark = pytest.mark.s3


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An empty bucket; its name."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    boto3.client("s3").create_bucket(Bucket="penstock-data")
    yield "penstock-data"
    server.stop()


def test_a_table_in_s3_becomes_a_dataset(bucket: str, tmp_path: Path) -> None:
    import boto3

    rows = "".join(f"text {n},{'ab'[n % 2]}\n" for n in range(40))
    client = boto3.client("s3")
    client.put_object(Bucket=bucket, Key="news/one.csv", Body=f"text,label\n{rows}".encode())
    client.put_object(Bucket=bucket, Key="news/", Body=b"")
    before = source_digest(DataConfig(source=f"s3://{bucket}/news/*.csv"), None, tmp_path / "cache.json")
    dataset = build_dataset(tmp_path, f"s3://{bucket}/news/one.csv", text={"vocab_size": 40})
    assert dataset.manifest.metadata["rows"] == {"train": 32, "validation": 4, "test": 4}
    client.put_object(Bucket=bucket, Key="news/one.csv", Body=b"text,label\nother,a\n")
    assert source_digest(DataConfig(source=f"s3://{bucket}/news/*.csv"), None, tmp_path / "cache.json") != before


def test_images_below_a_prefix_have_their_folder_as_class(bucket: str) -> None:
    import boto3

    for key in ("pets/cat/1.png", "pets/dog/2.png", "petshop/3.png"):
        boto3.client("s3").put_object(Bucket=bucket, Key=key, Body=b"x")
    found = find_source(f"s3://{bucket}/pets/")
    assert [(file.path, file.label) for file in found.files] == [
        (f"s3://{bucket}/pets/cat/1.png", "cat"),
        (f"s3://{bucket}/pets/dog/2.png", "dog"),
    ]


def test_nothing_there_and_no_bucket_are_said(bucket: str) -> None:
    with pytest.raises(DataError, match="no such object"):
        find_source(f"s3://{bucket}/none")
    with pytest.raises(DataError, match="cannot be listed"):
        find_source("s3://no-such-bucket/none")
