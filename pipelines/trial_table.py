"""The trials of a running sweep as a live table: the best so far, those that run, and those that ended last."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import RenderableType

STATES = {"stopped": "stopped early"}
"""What a state is called where its own name would not tell."""
COLOURS = {"running": "cyan", "waiting": "dim", "failed": "red", "stopped": "yellow"}


@dataclass
class TrialRow:
    """A trial as its last events told it."""

    number: int
    state: str = "running"
    epoch: int = 0
    value: float | None = None
    """Of the metric that decides: the last one reported, and of a trial that ended its best."""
    config: dict[str, Any] = field(default_factory=dict)
    reason: str | None = None
    changed: int = 0
    """Counts the events of the sweep: the larger, the later this trial was heard of."""


class TrialTable:
    """Takes the events of a sweep and draws its trials."""

    def __init__(self) -> None:
        self.rows: dict[int, TrialRow] = {}
        self.metric, self.mode, self.epochs = "", "max", 0
        self._events = 0

    def apply(self, event: dict[str, Any]) -> None:
        """Takes in an event of a trial; others are left alone."""
        if "trial" not in event:
            return
        self.metric, self.mode, self.epochs = event["metric"], event["mode"], event["epochs_total"]
        self._events += 1
        row = self.rows.setdefault(event["trial"], TrialRow(event["trial"]))
        row.changed = self._events
        row.epoch = event.get("epoch", event.get("epochs", row.epoch))
        row.value = event["metrics"].get(self.metric, row.value)
        if event["kind"] == "trial":
            row.state, row.config, row.reason = event["state"], event["config"], event.get("reason")

    def ordered(self, most: int) -> list[TrialRow]:
        """At most so many rows: the best, those that run, then those that were heard of last."""
        rows = sorted(self.rows.values(), key=lambda row: -row.changed)
        best = self.best()
        running = sorted((row for row in rows if row.state == "running" and row is not best), key=lambda r: r.number)
        others = [row for row in rows if row.state != "running" and row is not best]
        return [*([best] if best else []), *running, *others][:most]

    def best(self) -> TrialRow | None:
        """The trial with the best value so far; the earlier of equals."""
        sign = 1 if self.mode == "max" else -1
        rated = [row for row in self.rows.values() if row.value is not None and row.state != "failed"]
        return max(rated, key=lambda row: (sign * (row.value or 0.0), -row.number), default=None)

    def render(self, most: int) -> RenderableType:
        """The table, at most `most` trials long."""
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", pad_edge=False)
        table.add_column("  trial", no_wrap=True)
        table.add_column("state", no_wrap=True)
        table.add_column("epoch", justify="right", no_wrap=True)
        table.add_column(self.metric, justify="right", no_wrap=True)
        table.add_column("what was tried", no_wrap=True, overflow="ellipsis", ratio=1)
        best = self.best()
        for row in self.ordered(most):
            told = f"{row.reason}" if row.state == "failed" else describe_config(row.config)
            table.add_row(
                Text(f"{'★' if row is best else ' '} {row.number}", style="bold green" if row is best else ""),
                Text(STATES.get(row.state, row.state), style=COLOURS.get(row.state, "")),
                f"{row.epoch}/{self.epochs}",
                "" if row.value is None else f"{row.value:.4g}",
                Text(told, style="dim"),
            )
        hidden = len(self.rows) - most
        if hidden > 0:
            table.add_row("", Text(f"and {hidden} more", style="dim"))
        return table


def describe_config(config: dict[str, Any]) -> str:
    """`learning_rate=0.00123, architecture=mlp`."""
    return ", ".join(f"{name.rpartition('.')[2]}={_short(value)}" for name, value in config.items())


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}"
    if isinstance(value, dict):
        return str(value.get("architecture", value))
    return str(value)
