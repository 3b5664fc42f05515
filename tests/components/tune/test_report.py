"""components/tune/report.py and its drawings: everything on one page, and nothing from outside it."""

from __future__ import annotations

import math
import re
from html.parser import HTMLParser

import pytest

from components.tune.axis import axis_for
from components.tune.history import RecordedSweep, read_sweep
from components.tune.importance import parameter_importance
from components.tune.report import render_report
from tests.components.tune.fakes import SPACE, fake_train
from tests.components.tune.test_history import run_sweep

CONDITIONAL = {**SPACE, "model.kernel_size": {"choice": [3, 5], "when": "model.architecture == cnn"}}


@pytest.fixture(scope="module")
def sweep(tmp_path_factory) -> RecordedSweep:
    folder = tmp_path_factory.mktemp("report")
    journal = run_sweep(folder, trials=14, search="random", scheduler="asha", space=CONDITIONAL).journal
    return read_sweep(journal.path)


HEADINGS = ("History", "Learning curves", "Parallel coordinates", "Importance", "Slices", "Budget", "All trials")


class Tags(HTMLParser):
    """Checks that tags close in order, and keeps what the page would load."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loads: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.loads += [f"{tag} {name}" for name, _ in attributes if name in ("src", "href", "data", "srcset")]
        if tag not in ("meta", "circle", "line", "rect"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in ("circle", "line", "rect"):
            assert self.open.pop() == tag


def test_the_page_has_every_part_and_loads_nothing(sweep):
    page = render_report(sweep, "digits-0123456789")
    for heading in (
        "History",
        "Learning curves",
        "Parallel coordinates",
        "Importance",
        "Slices",
        "Budget",
        "All trials",
    ):
        assert f"<h2>{heading}</h2>" in page
    tags = Tags(page)
    assert tags.open == [] and tags.loads == []
    assert not re.search(r"https?:|<script|@import|url[(]", page)
    assert page.count("<tr") == 1 + 14 + len(sweep.state.winner().config)


def test_equal_sweeps_give_equal_pages(sweep):
    assert render_report(sweep, "run") == render_report(sweep, "run")


def test_a_reason_cannot_become_markup(tmp_path):
    def broken(job, worker):
        if job.work_folder.name == "001":
            raise ValueError("<script>alert(1)</script>")
        return fake_train(job, worker)

    journal = run_sweep(tmp_path, broken, trials=3, search="random", retries=0).journal
    page = render_report(read_sweep(journal.path), "<b>run</b>")
    assert "<script" not in page and "&lt;script&gt;" in page and "<b>run" not in page


def test_a_sweep_of_failures_and_one_of_a_single_trial_are_drawn_too(tmp_path):
    def broken(job, worker):
        raise ValueError("no")

    for name, train in (("failed", broken), ("single", fake_train)):
        journal = run_sweep(tmp_path / name, train, trials=1, search="random", retries=0).journal
        assert "</html>" in render_report(read_sweep(journal.path), "run")


def test_several_aims_are_drawn_against_each_other(tmp_path):
    journal = run_sweep(tmp_path, trials=5, search="random", metric=["accuracy", "loss"]).journal
    assert "<h2>Pareto set</h2>" in render_report(read_sweep(journal.path), "run")


def test_the_parameter_that_decides_is_the_important_one(tmp_path):
    def only_the_rate_counts(job, worker):
        worker.report(1, {"accuracy": -abs(math.log10(job.train.learning_rate) + 3)})

    journal = run_sweep(tmp_path, only_the_rate_counts, trials=20, search="random", space=CONDITIONAL).journal
    importance = parameter_importance(read_sweep(journal.path))
    assert importance["train.learning_rate"] > 0.7
    assert set(importance) == set(SPACE)  # the kernel size is not in every trial
    assert sum(importance.values()) == pytest.approx(1)


@pytest.mark.parametrize(
    ("values", "log", "texts"),
    [
        ([0.0, 1.0], False, ["0", "0.2", "0.4", "0.6", "0.8", "1"]),
        ([1e-4, 1e-2], True, ["1e-4", "1e-3", "1e-2"]),
        ([3, 3], False, None),
        (["b", "a"], False, ["a", "b"]),
        ([[16], [32, 32]], False, ["16", "32-32"]),
    ],
)
def test_ticks_are_round_and_words_are_in_order(values, log, texts):
    axis = axis_for(values, 0, 100, log=log)
    found = [text for _, text in axis.ticks()]
    assert all(0 <= place <= 100 for place, _ in axis.ticks())
    assert [text.replace("0.01", "1e-2").replace("0.001", "1e-3").replace("0.0001", "1e-4") for text in found] == (
        texts or found
    )


def test_a_few_numbers_are_their_own_ticks():
    axis = axis_for([32, 64, 32], 0, 100, few_are_marked=True)
    assert axis.ticks() == [(0.0, "32"), (100.0, "64")]
