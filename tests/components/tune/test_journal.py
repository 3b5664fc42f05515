"""components/tune/journal.py: what was written is read back or refused."""

from __future__ import annotations

import pytest

from components.errors import StageError
from components.tune.journal import Journal


def written(path, lines=3):
    journal = Journal(path, "owner")
    for number in range(lines):
        journal.append("suggest", trial=number, config={"x": 0.1 * number})
    return journal


def test_records_read_back_as_they_were_used(tmp_path):
    journal = written(tmp_path / "trials.jsonl")
    journal.append("suggest", trial=3, config={"x": (1, 2)})
    assert Journal(journal.path, "owner").read() == journal.read()


def test_a_torn_last_line_is_cut_off_and_the_next_one_is_whole(tmp_path):
    path = written(tmp_path / "trials.jsonl").path
    path.write_bytes(path.read_bytes()[:-7])
    journal = Journal(path, "owner")
    assert [record.get("trial") for record in journal.read()] == [None, 0, 1]
    journal.append("suggest", trial=2, config={})
    assert Journal(path, "owner").read() == journal.read()


def test_another_sweeps_journal_is_refused(tmp_path):
    path = written(tmp_path / "trials.jsonl").path
    with pytest.raises(StageError, match="belongs to another sweep"):
        Journal(path, "somebody else")


def test_a_journal_set_aside_starts_anew_and_stays_readable(tmp_path):
    journal = written(tmp_path / "trials.jsonl")
    journal.set_aside()
    assert len(Journal(journal.path, "owner").read()) == 1
    assert len(list(tmp_path.glob("trials.*.failed.jsonl"))) == 1
