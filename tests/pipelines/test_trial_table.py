"""pipelines/trial_table.py: which trials are shown, and as what."""

from __future__ import annotations

import io
from typing import Any

from rich.console import Console

from pipelines.trial_table import TrialTable
from pipelines.view import LiveView

PLACE = {"metric": "loss", "mode": "min", "epochs_total": 9, "standing": "best 0.2 (trial 1)"}


def event(kind: str, trial: int, metrics: dict[str, float] | None = None, **more: Any) -> dict[str, Any]:
    about = {"stage": "tune", "kind": kind, "time": 1.0, "step": 1, "total": 6, "metrics": metrics or {}}
    return {**about, "trial": trial, **PLACE, **more}


def begun(trial: int) -> dict[str, Any]:
    return event("trial", trial, state="running", config={"train.learning_rate": 10.0**-trial}, epochs=0, reason=None)


def ended(trial: int, state: str, loss: float, reason: str | None = None) -> dict[str, Any]:
    config = {"train.learning_rate": 10.0**-trial}
    return event("trial", trial, {"loss": loss}, state=state, config=config, epochs=4, reason=reason)


EVENTS = [
    *(begun(trial) for trial in range(5)),
    ended(0, "stopped", 0.5),
    ended(1, "finished", 0.2),
    ended(2, "failed", 0.1, "ValueError: poison"),
    event("progress", 3, {"loss": 0.4}, epoch=2),
]


def told(events: list[dict[str, Any]]) -> TrialTable:
    table = TrialTable()
    for one in events:
        table.apply(one)
    return table


def test_the_best_comes_first_then_those_that_run_then_the_last_that_ended():
    table = told(EVENTS)
    assert [row.number for row in table.ordered(9)] == [1, 3, 4, 2, 0]
    assert [row.number for row in table.ordered(2)] == [1, 3]
    assert table.best().number == 1  # a failed trial is none, however low its loss


def test_what_a_trial_tells_is_kept():
    rows = told(EVENTS).rows
    assert (rows[3].state, rows[3].epoch, rows[3].value) == ("running", 2, 0.4)
    assert (rows[2].state, rows[2].reason) == ("failed", "ValueError: poison")


def test_the_live_view_draws_the_trials_while_the_sweep_runs():
    output = io.StringIO()
    view = LiveView(["tune", "train"], Console(file=output, force_terminal=True, width=110, height=30))
    begin = {"stage": "tune", "kind": "begin", "time": 1.0, "step": None, "total": None, "metrics": {}}
    view.update([begin, *EVENTS])
    screen = output.getvalue()
    for part in ("★ 1", "stopped early", "ValueError: poison", "learning_rate=0.001", "2/9"):
        assert part in screen
    output.truncate(0)
    view.update([{**begin, "kind": "end", "metrics": {"seconds": 9.0}}])
    assert "ValueError" not in output.getvalue()
    view.close()
