"""How often a fault is tried, and the record that `make test-faults-full` keeps of it.

`PENSTOCK_FAULTS=full` asks for the full counts. That takes hours, so each result is saved as it comes: the same command
goes on where the last one was stopped, as long as the code is the same, and writes `docs/faults.md` when it ends.
`PENSTOCK_FAULTS=short` writes that page for the short counts.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from components.artifacts import Artifact
from tests.builders import build_dataset
from tests.command import Home, new_home

ROOT = Path(__file__).resolve().parents[2]
STATE = ROOT / ".penstock" / "faults.jsonl"
PAGE = ROOT / "docs" / "faults.md"
FULL = os.environ.get("PENSTOCK_FAULTS") == "full"
RECORD = FULL or os.environ.get("PENSTOCK_FAULTS") == "short"
ROW = re.compile(r"test_(?:(?:security_)?(?P<security>\d+)|(?P<fault>[A-Z]\d+))(?=_|\b)")


@pytest.fixture
def repeats(record_property: Callable[[str, object], None]) -> Callable[[int, int], int]:
    """`repeats(short, full)`: how often to try, noted as this test's n."""

    def choose(short: int, full: int) -> int:
        count = full if FULL else short
        record_property("n", count)
        return count

    return choose


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Sums in one order, so that two trainings can be compared bit for bit; also those of a module's fixtures."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        yield


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """300 digits, as the data stage leaves them; read only."""
    return build_dataset(tmp_path_factory.mktemp("digits"), rows=300)


@pytest.fixture
def home() -> Iterator[Home]:
    """A `PENSTOCK_HOME` for the real command; its processes are ended and its files removed."""
    with new_home("pf-") as home:
        yield home


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves out what has already passed with this code in an earlier part of a full run."""
    done = passed_before() if FULL else set()
    config.hook.pytest_deselected(items=[item for item in items if item.nodeid in done])
    items[:] = [item for item in items if item.nodeid not in done]


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    outcome: Any = yield
    report = outcome.get_result()
    if RECORD and (report.when == "call" or report.failed):
        save(item.nodeid, report.outcome, int(dict(item.user_properties).get("n", 1)))


def pytest_sessionfinish() -> None:
    if RECORD and STATE.exists():
        PAGE.write_text(render_page(read_results()))


def current_code() -> str:
    from pipelines.identity import code_version

    return code_version()


def save(test: str, outcome: str, count: int) -> None:
    record = {
        "test": test,
        "outcome": outcome,
        "n": count,
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "code": current_code(),
    }
    STATE.parent.mkdir(exist_ok=True)
    with STATE.open("a") as handle:
        handle.write(json.dumps(record) + "\n")


def read_results() -> dict[str, dict[str, Any]]:
    """The newest result of each test; a torn last line is left out."""
    lines = STATE.read_text().split("\n")[:-1] if STATE.exists() else []
    return {record["test"]: record for record in map(json.loads, lines)}


def passed_before() -> set[str]:
    code = current_code()
    return {test for test, one in read_results().items() if one["outcome"] == "passed" and one["code"] == code}


def render_page(results: dict[str, dict[str, Any]]) -> str:
    """docs/faults.md: one line a test function, its cases added up, sorted by the row it stands for."""
    lines = [
        "# Faults",
        "",
        "What was broken on purpose, how often (n), and what came of it.",
        "Written by `make test-faults-full` (full counts) or `PENSTOCK_FAULTS=short make test-faults` (short ones).",
        "Rows 9, 14 and 19 of the security checklist are also in `make test` (`test_security_...`).",
        "",
        "| Row | Test | n | Outcome | Date | Code |",
        "|---|---|---|---|---|---|",
    ]
    for (row, name), ones in sorted(by_function(results).items(), key=lambda item: row_order(*item[0])):
        outcome = next((one["outcome"] for one in ones if one["outcome"] != "passed"), "passed")
        last = max(ones, key=lambda one: one["date"])
        count = sum(one["n"] for one in ones)
        lines.append(f"| {row} | `{name}` | {count} | {outcome} | {last['date']} | {last['code']} |")
    return "\n".join(lines) + "\n"


def by_function(results: dict[str, dict[str, Any]]) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """Results by (row, function); cases that were skipped say nothing, unless all were."""
    functions: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for test, one in results.items():
        name = test.partition("[")[0].rpartition("::")[2]
        functions.setdefault((row_of(test), name), []).append(one)
    return {key: [one for one in ones if one["outcome"] != "skipped"] or ones for key, ones in functions.items()}


def row_order(row: str, name: str) -> tuple[str, int, str]:
    letters, digits = row.rstrip("0123456789"), row.lstrip("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz ")
    return letters, int(digits or 0), name


def row_of(test: str) -> str:
    match = ROW.search(test)
    if match is None:
        return ""
    return match["fault"] or f"security {match['security']}"
