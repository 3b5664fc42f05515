from __future__ import annotations

import errno
from pathlib import Path

import pytest

from components.context import append_line, end_torn_line, read_lines


def test_a_torn_line_is_left_out_and_later_ones_are_read(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    append_line(path, {"number": 1})
    with path.open("ab") as handle:
        handle.write(b'{"number": 2, "te')
    assert read_lines(path) == [{"number": 1}]
    end_torn_line(path)
    append_line(path, {"number": 3})
    assert read_lines(path) == [{"number": 1}, {"number": 3}]


def test_a_line_that_does_not_fit_on_the_disk_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("components.context.os.write", lambda descriptor, line: len(line) - 1)
    with pytest.raises(OSError) as caught:
        append_line(tmp_path / "events.jsonl", {"number": 1})
    assert caught.value.errno == errno.ENOSPC
