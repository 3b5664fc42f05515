"""The digest of a source follows its content; the cache only saves time."""

import os
from pathlib import Path

import pytest

from components.data import digest as digest_module
from components.data.config import DataConfig
from components.data.digest import source_digest
from components.errors import DataError


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "data" / "a.csv"
    path.parent.mkdir()
    path.write_text("text,label\na,b\n")
    os.utime(path, ns=(10**18, 10**18))
    return path


def digest(path: Path) -> str:
    return source_digest(DataConfig(source=str(path)), None, path.parent.parent / "cache" / "digests.json")


def test_the_digest_follows_the_content_not_the_place(source: Path, tmp_path: Path) -> None:
    before = digest(source)
    (tmp_path / "elsewhere").mkdir()
    copy = tmp_path / "elsewhere" / "a.csv"
    copy.write_bytes(source.read_bytes())
    assert digest(copy) == before
    source.write_text("text,label\na,c\n")
    assert digest(source) != before


def test_a_tokenizer_in_a_folder_counts_by_its_content(source: Path, tmp_path: Path) -> None:
    def digest_with(tokenizer: str) -> str:
        config = DataConfig.model_validate({"source": str(source), "text": {"tokenizer": tokenizer}})
        return source_digest(config, None, tmp_path / "cache" / "digests.json")

    assert digest_with("byte") == digest(source)
    (tmp_path / "t5").mkdir()
    (tmp_path / "t5" / "tokenizer.json").write_text("one")
    before = digest_with(str(tmp_path / "t5"))
    assert before == digest_with(str((tmp_path / "t5").rename(tmp_path / "moved"))) != digest(source)
    (tmp_path / "moved" / "tokenizer.json").write_text("two")
    assert digest_with(str(tmp_path / "moved")) != before


def test_an_unchanged_file_is_not_read_again(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = digest(source)
    monkeypatch.setattr(digest_module, "file_sha256", lambda _: pytest.fail("read again"))
    assert digest(source) == before


def test_a_file_changed_a_moment_ago_is_not_trusted_to_the_clock(source: Path) -> None:
    source.write_text("one")
    status = source.stat()
    before = digest(source)
    source.write_text("two")
    os.utime(source, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert digest(source) != before


def test_a_broken_cache_is_replaced(source: Path) -> None:
    before = digest(source)
    cache = source.parent.parent / "cache" / "digests.json"
    cache.write_text('{"a": 1')
    assert digest(source) == before
    assert str(source) in cache.read_text()


def test_moving_an_image_to_another_class_changes_the_digest(tmp_path: Path) -> None:
    for label in ("cat", "dog"):
        (tmp_path / "pets" / label).mkdir(parents=True)
        (tmp_path / "pets" / label / f"{label}.png").write_text(label)
    before = digest(tmp_path / "pets")
    (tmp_path / "pets" / "cat" / "cat.png").rename(tmp_path / "pets" / "dog" / "cat.png")
    assert digest(tmp_path / "pets") != before


def test_a_missing_source_has_no_digest(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        digest(tmp_path / "data" / "none.csv")
