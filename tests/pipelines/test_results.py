from __future__ import annotations

from typing import Any

import pytest

from components.evaluate.gate import CHAMPION, COMPRESSED
from pipelines.results import gate_status


def gate(**passed: bool) -> dict[str, Any]:
    names = {"compressed": COMPRESSED, "champion": CHAMPION}
    parts = [{"name": names[name], "passed": value} for name, value in passed.items()]
    return {"passed": all(passed.values()), "parts": parts}


@pytest.mark.parametrize(
    ("verdict", "compressed", "status"),
    [
        (None, None, "done"),
        (None, {"passed": True}, "done"),
        (None, {"passed": False}, "refused"),
        (gate(compressed=True), {"passed": True}, "done"),
        (gate(compressed=False), {"passed": True}, "refused"),
        (gate(compressed=True, champion=False), {"passed": True}, "refused"),
    ],
)
def test_a_run_is_refused_by_the_gate_or_for_want_of_a_compressed_model(
    verdict: dict[str, Any] | None, compressed: dict[str, Any] | None, status: str
) -> None:
    assert gate_status({"gate": verdict, "compressed": compressed}) == status
