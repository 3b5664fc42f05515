"""The report's drawings, as SVG text: no library, no script, nothing to load."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from components.tune.axis import Axis, axis_for, label_of, short

WIDTH, HEIGHT = 720, 280
LEFT, RIGHT, TOP, BOTTOM = 56, 16, 14, 34
SLICE_WIDTH, SLICE_HEIGHT = 236, 190
RAMP = ("#d3e3f7", "#a9c9ef", "#7caee6", "#4f91db", "#2a72c4", "#17529a", "#0b356b")
"""From the worst to the best value: one hue, so that the order is seen without a key."""


@dataclass(frozen=True)
class Mark:
    """A trial in a drawing."""

    trial: int
    state: str
    config: Mapping[str, Any]
    value: float | None
    curve: Mapping[int, float]
    winner: bool = False

    @property
    def hint(self) -> str:
        """Shown when the pointer rests on it."""
        values = ", ".join(f"{name} {label_of(value)}" for name, value in self.config.items())
        told = "no report" if self.value is None else short(self.value)
        return f"trial {self.trial}, {self.state}: {told}\n{values}"

    @property
    def style(self) -> str:
        return "winner" if self.winner else self.state


def svg(width: float, height: float, parts: Sequence[str], title: str) -> str:
    """A drawing that shrinks with its column; `title` is read aloud in its place."""
    body = "".join(parts)
    return f'<svg viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{escape(title)}">{body}</svg>'


def frame(x: Axis, y: Axis, x_name: str, y_name: str) -> list[str]:
    """Grid lines, ticks and the names of both axes."""
    left, right, bottom, top = x.start, x.end, y.start, y.end
    parts = []
    for place, text in y.ticks():
        parts.append(f'<line class="grid" x1="{left}" x2="{right}" y1="{place}" y2="{place}"/>')
        parts.append(f'<text class="tick" x="{left - 6}" y="{place + 4}" text-anchor="end">{escape(text)}</text>')
    for place, text in x.ticks():
        parts.append(f'<text class="tick" x="{place}" y="{bottom + 16}" text-anchor="middle">{escape(text)}</text>')
    parts.append(f'<line class="axis" x1="{left}" x2="{right}" y1="{bottom}" y2="{bottom}"/>')
    parts.append(f'<text class="name" x="{right}" y="{bottom + 31}" text-anchor="end">{escape(x_name)}</text>')
    parts.append(f'<text class="name" x="{left}" y="{top - 3}">{escape(y_name)}</text>')
    return parts


def dot(x: float, y: float, mark: Mark) -> str:
    """A trial; a failed one is a cross, a stopped one is hollow."""
    hint = f"<title>{escape(mark.hint)}</title>"
    if mark.state == "failed":
        return f'<path class="failed" d="M{x - 4},{y - 4}l8,8m0,-8l-8,8">{hint}</path>'
    radius = 6 if mark.winner else 4.5
    return f'<circle class="{mark.style}" cx="{x}" cy="{y}" r="{radius}">{hint}</circle>'


def path(points: Sequence[tuple[float, float]], kind: str, hint: str = "", color: str = "") -> str:
    """A line through some points."""
    through = "L".join(f"{x},{y}" for x, y in points)
    style = f' style="stroke:{color}"' if color else ""
    title = f"<title>{escape(hint)}</title>" if hint else ""
    return f'<path class="{kind}"{style} d="M{through}">{title}</path>'


def plain_axes(x_values: Sequence[Any], y_values: Sequence[Any]) -> tuple[Axis, Axis]:
    return (
        axis_for(x_values, LEFT, WIDTH - RIGHT, pad=0.02),
        axis_for(y_values, HEIGHT - BOTTOM, TOP + 8, pad=0.06),
    )


def history_chart(marks: Sequence[Mark], metric: str, sign: int) -> str:
    """Every trial's value in the order of their numbers, and the best so far."""
    known = [mark for mark in marks if mark.value is not None]
    x, y = plain_axes([mark.trial for mark in marks], [mark.value for mark in known])
    best: list[tuple[float, float]] = []
    leader: float | None = None
    for mark in known:
        assert mark.value is not None
        if mark.state != "failed" and (leader is None or sign * mark.value > sign * leader):
            if leader is not None:
                best.append((x.place(mark.trial), y.place(leader)))
            leader = mark.value
        if leader is not None:
            best.append((x.place(mark.trial), y.place(leader)))
    dots = [dot(x.place(mark.trial), y.place(mark.value), mark) for mark in known]
    lost = [dot(x.place(mark.trial), y.start - 6, mark) for mark in marks if mark.value is None]
    line = [path(best, "best", "best so far")] if best else []
    return svg(WIDTH, HEIGHT, [*frame(x, y, "trial", metric), *line, *dots, *lost], "History of the sweep")


def curves_chart(marks: Sequence[Mark], metric: str) -> str:
    """The metric of every trial by epoch, the winner on top."""
    known = sorted((mark for mark in marks if mark.curve), key=lambda mark: mark.winner)
    x, y = plain_axes(
        [epoch for mark in known for epoch in mark.curve], [value for mark in known for value in mark.curve.values()]
    )
    lines = []
    for mark in known:
        points = [(x.place(epoch), y.place(value)) for epoch, value in sorted(mark.curve.items())]
        lines.append(path(points, f"curve {mark.style}", mark.hint))
        lines.append(dot(*points[-1], mark) if len(points) == 1 or mark.winner else "")
    return svg(WIDTH, HEIGHT, [*frame(x, y, "epoch", metric), *lines], "Learning curves of all trials")


def parallel_chart(marks: Sequence[Mark], names: Sequence[str], logs: set[str], metric: str, sign: int) -> str:
    """One line a trial through an axis for each parameter and the metric; the better the darker."""
    known = sorted((mark for mark in marks if mark.value is not None), key=lambda mark: sign * (mark.value or 0))
    columns = [*names, metric]
    width = max(WIDTH, 110 * len(columns))
    places = [50 + index * (width - 110) / max(1, len(columns) - 1) for index in range(len(columns))]
    axes = [
        axis_for(
            [mark.config[name] for mark in known if name in mark.config],
            HEIGHT - 30,
            34,
            log=name in logs,
            few_are_marked=True,
        )
        for name in names
    ] + [axis_for([mark.value for mark in known], HEIGHT - 30, 34)]
    lines = []
    for rank, mark in enumerate(known):
        values = [mark.config.get(name) for name in names] + [mark.value]
        points = [
            # Below the axis where a trial does not have the parameter.
            (round(place, 1), HEIGHT - 12 if value is None else axis.place(value))
            for place, axis, value in zip(places, axes, values, strict=True)
        ]
        color = RAMP[round((len(RAMP) - 1) * rank / max(1, len(known) - 1))]
        lines.append(path(points, "parallel winner" if mark.winner else "parallel", mark.hint, color))
    return svg(width, HEIGHT, [*lines, *map(_upright, places, axes, columns)], "Parallel coordinates")


def _upright(place: float, axis: Axis, name: str) -> str:
    ticks = "".join(
        f'<text class="tick halo" x="{place + 5:g}" y="{at + 4}">{escape(text[:16])}</text>'
        for at, text in axis.ticks()
    )
    top = f'<text class="name" x="{place:g}" y="18" text-anchor="middle">{escape(short_name(name))}</text>'
    return f'<line class="axis" x1="{place:g}" x2="{place:g}" y1="34" y2="{HEIGHT - 30}"/>{ticks}{top}'


def short_name(name: str) -> str:
    """The last part of a dotted name."""
    return name.rpartition(".")[2]


def importance_chart(importance: Mapping[str, float]) -> str:
    """A bar for each parameter, the longest first."""
    room, height = 210, 26 * len(importance) + 8
    largest = max([*importance.values(), 1e-9])
    parts = []
    for row, (name, share) in enumerate(importance.items()):
        y, length = 6 + 26 * row, max(2.0, share / largest * (WIDTH - room - 70))
        parts.append(f'<text class="label" x="{room - 8}" y="{y + 13}" text-anchor="end">{escape(name)}</text>')
        parts.append(f'<rect class="bar" x="{room}" y="{y}" width="{length:.1f}" height="18" rx="3"/>')
        parts.append(f'<text class="label" x="{room + length + 6:.1f}" y="{y + 13}">{share:.0%}</text>')
    return svg(WIDTH, height, parts, "Importance of each parameter")


def slice_chart(marks: Sequence[Mark], name: str, log: bool, metric: str) -> str:
    """The metric against one parameter."""
    known = [mark for mark in marks if mark.value is not None and name in mark.config]
    x = axis_for([mark.config[name] for mark in known], 44, SLICE_WIDTH - 12, log=log, pad=0.04, few_are_marked=True)
    y = axis_for([mark.value for mark in known], SLICE_HEIGHT - BOTTOM, 18, pad=0.08)
    dots = [dot(x.place(mark.config[name]), y.place(mark.value), mark) for mark in known]
    return svg(SLICE_WIDTH, SLICE_HEIGHT, [*frame(x, y, short_name(name), metric), *dots], f"Slice over {name}")


def pareto_chart(marks: Sequence[Mark], metrics: Mapping[int, Mapping[str, float]], front: Sequence[int],
                 first: str, second: str) -> str:  # fmt: skip
    """Two aims against each other, the Pareto set joined by a line."""
    known = [mark for mark in marks if {first, second} <= set(metrics[mark.trial])]
    x, y = plain_axes([metrics[m.trial][second] for m in known], [metrics[m.trial][first] for m in known])
    points = {m.trial: (x.place(metrics[m.trial][second]), y.place(metrics[m.trial][first])) for m in known}
    line = [path(sorted(points[trial] for trial in front if trial in points), "best", "Pareto set")] if front else []
    dots = [dot(*points[mark.trial], mark) for mark in known]
    return svg(WIDTH, HEIGHT, [*frame(x, y, second, first), *line, *dots], "Pareto set")


def budget_chart(marks: Sequence[Mark], metric: str, sign: int) -> str:
    """The best value so far against the epochs spent, trial after trial."""
    spent, best, points = 0, None, []
    for mark in marks:
        for _, value in sorted(mark.curve.items()):
            spent += 1
            best = value if best is None or sign * value > sign * best else best
            points.append((spent, best))
    if not points:
        return ""
    x, y = plain_axes([0, spent], [value for _, value in points])
    steps = [(x.place(count), y.place(value)) for count, value in points]
    return svg(WIDTH, HEIGHT, [*frame(x, y, "epochs spent", f"best {metric}"), path(steps, "best")], "Budget")
