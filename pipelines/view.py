"""What a person sees of a run, drawn from its events: a live table on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, Any

from pipelines.run import View
from pipelines.trial_table import TrialTable, describe_config

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

PLAIN_PROGRESS_S = 10.0
SHARES = {"mfu": "MFU", "data_wait": "data wait"}
MOST_TRIALS = 14
"""Trials shown at once; fewer on a low terminal."""


@dataclass
class StageState:
    """What is known of one stage by now."""

    name: str
    state: str = "waiting"
    started: float | None = None
    seconds: float | None = None
    step: int = 0
    total: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    text: str = ""
    standing: str = ""
    """Of a sweep: best so far, how many run, stopped early, failed."""
    trials: TrialTable = field(default_factory=TrialTable)

    def apply(self, event: dict[str, Any]) -> None:
        """Takes one event in."""
        kind = event["kind"]
        if kind == "begin":
            self.state, self.started, self.step, self.total, self.metrics = "running", event["time"], 0, 0, {}
        elif kind == "end":
            self.state, self.seconds = "done", event["metrics"].get("seconds")
        elif kind in ("progress", "trial"):
            self.step, self.total = event["step"] or self.step, event["total"] or self.total
            self.metrics = event["metrics"] or self.metrics
            self.standing = event.get("standing", "")
            self.trials.apply(event)
        elif kind == "note":
            self.text = event.get("text", "")


def describe_metrics(metrics: dict[str, float]) -> str:
    """`loss 0.412  accuracy 0.956  1,340 samples/s  MFU 31%  data wait 2%  ETA 12 s`."""
    parts = []
    for name, value in metrics.items():
        if value is None:
            continue
        if name == "eta_s":
            parts.append(f"ETA {value:.0f} s")
        elif name in SHARES:
            parts.append(f"{SHARES[name]} {value:.0%}")
        elif name.endswith("_per_s"):
            parts.append(f"{value:,.0f} {name.removesuffix('_per_s')}/s")
        elif isinstance(value, int | float):
            parts.append(f"{name} {value:.4g}")
    return "  ".join(parts)


def describe_trial(event: dict[str, Any]) -> str:
    """One line for a trial: number, state, metrics, and what was tried."""
    metrics = describe_metrics(event["metrics"])
    return f"trial {event['trial']} {event['state']:9} {metrics}  {describe_config(event['config'])}".rstrip()


class PlainView(View):
    """Lines for a log: begin, end, trials, warnings, and progress now and then."""

    def __init__(self, output: IO[str]) -> None:
        self.output = output
        self._last_progress = 0.0

    def update(self, events: list[dict[str, Any]]) -> None:
        for event in events:
            line = self._line(event)
            if line:
                print(line, file=self.output, flush=True)

    def _line(self, event: dict[str, Any]) -> str | None:
        stage, kind = f"{event['stage']:9}", event["kind"]
        if kind == "begin":
            return f"{stage} begins"
        if kind == "end":
            return f"{stage} done in {event['metrics']['seconds']:.1f} s"
        if kind in ("note", "warning"):
            return f"{stage} {'warning: ' if kind == 'warning' else ''}{event.get('text', '')}"
        if kind == "trial" and event.get("state") != "running":
            return f"{stage} {describe_trial(event)}"
        if kind == "progress" and time.monotonic() - self._last_progress > PLAIN_PROGRESS_S:
            self._last_progress = time.monotonic()
            told = event.get("standing") or describe_metrics(event["metrics"])
            return f"{stage} {event['step']}/{event['total']}  {told}"
        return None


class LiveView(View):
    """A table that is redrawn in place: one line a stage, a bar inside the running one, a sweep's trials below."""

    def __init__(self, stages: Sequence[str], console: Console) -> None:
        from rich.live import Live

        self.stages = {name: StageState(name) for name in stages}
        self.console = console
        self.live = Live(console=console, auto_refresh=False, transient=False)

    def update(self, events: list[dict[str, Any]]) -> None:
        # Begun at the first call: a run that is refused before draws nothing and leaves the cursor as it was.
        self.live.start()
        for event in events:
            if event["stage"] in self.stages:
                self.stages[event["stage"]].apply(event)
            if event["kind"] == "warning":
                self.console.print(f"  [yellow]{event.get('text', '')}[/yellow]", highlight=False)
            if event["kind"] == "begin":
                self._skip_before(event["stage"])
        self.live.update(self._table(), refresh=True)

    def _skip_before(self, stage: str) -> None:
        """A stage that never began although a later one does came from the cache."""
        for name, state in self.stages.items():
            if name == stage:
                return
            if state.state == "waiting":
                state.state = "cached"

    def close(self) -> None:
        for state in self.stages.values():
            if state.state == "running":
                state.state = "ended"
        if self.live.is_started:
            self.live.update(self._table(), refresh=True)
            self.live.stop()

    def _table(self) -> RenderableType:
        from rich.console import Group
        from rich.padding import Padding
        from rich.table import Table

        table = Table.grid(padding=(0, 2))
        for _ in range(4):
            table.add_column(no_wrap=True)
        for state in self.stages.values():
            table.add_row(*self._row(state))
        sweep = next((state for state in self.stages.values() if state.state == "running" and state.trials.rows), None)
        if sweep is None:
            return table
        room = max(3, min(MOST_TRIALS, self.console.height - len(self.stages) - 4))
        return Group(table, "", Padding(sweep.trials.render(room), (0, 0, 0, 4)))

    def _row(self, state: StageState) -> list[RenderableType]:
        from rich.progress_bar import ProgressBar
        from rich.spinner import Spinner

        marks: dict[str, Any] = {"waiting": "[dim]·", "done": "[green]✓", "cached": "[cyan]≡", "ended": "[red]✗"}
        mark = marks.get(state.state) or Spinner("dots", style="cyan")
        name = (
            f"[bold]{state.name}"
            if state.state == "running"
            else f"[dim]{state.name}"
            if state.state == "waiting"
            else state.name
        )
        if state.state == "running":
            seconds = f"{time.time() - (state.started or time.time()):.0f} s"
            bar = ProgressBar(state.total, state.step, width=24) if state.total else ""
            told = state.standing or describe_metrics(state.metrics)
            detail: Any = _beside(bar, f"{state.step}/{state.total}  {told}" if state.total else state.text)
        else:
            seconds = (
                f"{state.seconds:.1f} s" if state.seconds is not None else "cached" if state.state == "cached" else ""
            )
            metrics = {name: value for name, value in state.metrics.items() if name != "eta_s"}
            detail = f"[dim]{state.text or state.standing or describe_metrics(metrics)}"
        return [mark, name, seconds, detail]


def _beside(bar: Any, text: str) -> RenderableType:
    from rich.table import Table

    grid = Table.grid(padding=(0, 1))
    grid.add_row(bar, text) if bar else grid.add_row(text)
    return grid


def make_view(stages: Sequence[str], quiet: bool) -> View:
    """The view that fits: nothing when quiet, a live table on a terminal, else plain lines (both on standard error)."""
    if quiet:
        return View()
    if not sys.stderr.isatty():
        return PlainView(sys.stderr)
    from rich.console import Console

    return LiveView(stages, Console(stderr=True))
