from __future__ import annotations

import io

from pipelines.view import LiveView, PlainView, describe_metrics

PLACE = {"metric": "accuracy", "mode": "max", "epochs_total": 9, "standing": "best 0.9 (trial 0)"}
EVENTS = [
    {"stage": "train", "kind": "begin", "time": 1.0, "step": None, "total": None, "metrics": {}},
    {"stage": "train", "kind": "progress", "time": 2.0, "step": 3, "total": 10,
     "metrics": {"loss": 0.5, "samples_per_s": 1234.0, "eta_s": 7.0}},
    {"stage": "tune", "kind": "trial", "time": 2.0, "step": 1, "total": 6, "metrics": {"accuracy": 0.9}, "trial": 0,
     "state": "finished", "config": {"train.learning_rate": 0.001234}, **PLACE},
    {"stage": "train", "kind": "warning", "time": 2.5, "step": None, "total": None, "metrics": {}, "text": "careful"},
    {"stage": "train", "kind": "end", "time": 3.0, "step": None, "total": None, "metrics": {"seconds": 2.0}},
]  # fmt: skip


def test_plain_lines_tell_begin_trials_warnings_and_end():
    output = io.StringIO()
    PlainView(output).update(EVENTS)
    lines = output.getvalue().splitlines()
    assert lines[0].split() == ["train", "begins"]
    assert "loss 0.5  1,234 samples/s  ETA 7 s" in lines[1]
    assert "trial 0 finished  accuracy 0.9  learning_rate=0.00123" in lines[2]
    assert "warning: careful" in lines[3]
    assert "done in 2.0 s" in lines[4]


def test_the_live_table_shows_cached_running_and_done_stages():
    from rich.console import Console

    output = io.StringIO()
    view = LiveView(["data", "train", "compress"], Console(file=output, force_terminal=True, width=120))
    view.update(EVENTS)
    assert view.stages["data"].state == "cached"
    assert view.stages["train"].state == "done"
    assert view.stages["compress"].state == "waiting"
    view.close()
    assert "cached" in output.getvalue()


def test_metrics_without_a_value_are_left_out():
    assert describe_metrics({"loss": None, "accuracy": 0.5}) == "accuracy 0.5"
