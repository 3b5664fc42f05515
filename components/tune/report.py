"""A sweep as one HTML page that needs nothing else: no network, no script, readable in ten years."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import Any

from components.tune import charts
from components.tune.axis import label_of, short
from components.tune.charts import Mark
from components.tune.history import RecordedSweep
from components.tune.importance import parameter_importance
from components.tune.luck import percent
from components.tune.summary import summarise

STYLE = Path(__file__).with_name("report.css")


def render_report(sweep: RecordedSweep, run_id: str) -> str:
    """The whole page."""
    summary = summarise(sweep)
    marks = make_marks(summary)
    sections = [
        *_tiles(summary),
        _section("History", "Each trial's best epoch on validation, in order; the line is the best so far.",
                 charts.history_chart(marks, summary["aims"][0]["name"], _sign(summary))),
        *_pareto(summary, marks),
        _section("Learning curves", "Every epoch of every trial. Grey ones were stopped early.",
                 charts.curves_chart(marks, summary["aims"][0]["name"])),
        *_parameters(sweep, summary, marks),
        _section("Budget", _budget_words(summary),
                 charts.budget_chart(marks, summary["aims"][0]["name"], _sign(summary))),
        _section("All trials", "Metrics are those of a trial's best epoch on validation.", _table(summary)),
    ]  # fmt: skip
    title = f"Sweep {escape(run_id)}"
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{STYLE.read_text()}</style></head>'
        f"<body><header><h1>{escape(run_id)}</h1><p>{escape(_subtitle(summary))}</p></header>"
        f"<main>{''.join(sections)}</main></body></html>\n"
    )


def make_marks(summary: dict[str, Any]) -> list[Mark]:
    """The trials as the drawings take them."""
    metric, best = summary["aims"][0]["name"], (summary["best"] or {}).get("trial")
    return [
        Mark(
            trial["trial"],
            trial["state"],
            trial["config"],
            trial["metrics"].get(metric),
            {int(epoch): value for epoch, value in trial["curve"].items()},
            winner=trial["trial"] == best,
        )
        for trial in summary["trials"]
        if trial["repeat_of"] is None
    ]


def _sign(summary: dict[str, Any]) -> int:
    return 1 if summary["aims"][0]["mode"] == "max" else -1


def _subtitle(summary: dict[str, Any]) -> str:
    aims = ", ".join(
        f"{aim['name']} ({'higher' if aim['mode'] == 'max' else 'lower'} is better)" for aim in summary["aims"]
    )
    told = f", told {summary['observed']} earlier trials" if summary["observed"] else ""
    return f"{summary['search']}, seed {summary['seed']}{told}. Aim: {aims}."


def _tiles(summary: dict[str, Any]) -> list[str]:
    """The figures that matter, large."""
    best, counts, budget = summary["best"], summary["counts"], summary["budget"]
    figures = []
    if best:
        figures += [(short(value), f"{name}, trial {best['trial']}") for name, value in best["aims"].items()]
    ended = counts["finished"] + counts["stopped"] + counts["failed"]
    if summary["repeats"] and summary["repeats"]["chance_only_seemed_best"] is not None:
        figures.append((percent(summary["repeats"]["chance_only_seemed_best"]), "chance that it only seemed best"))
    figures += [
        (f"{ended}/{summary['total']}", "trials ended"),
        (str(counts["stopped"]), "stopped early"),
        (str(counts["failed"]), "failed"),
        (f"{budget['epochs']:,}", f"epochs trained, {budget['spared']:,} spared"),
        (_duration(budget["seconds"]), "of trials"),
    ]
    tiles = "".join(
        f'<div class="tile"><b>{escape(value)}</b><span>{escape(text)}</span></div>' for value, text in figures
    )
    chosen = "".join(
        f"<tr><td>{escape(name)}</td><td>{escape(label_of(value))}</td></tr>"
        for name, value in (best or {"config": {}})["config"].items()
    )
    winner = f'<section><h2>Chosen</h2><table class="chosen">{chosen}</table></section>' if chosen else ""
    return [f'<div class="tiles">{tiles}</div>', winner]


def _duration(seconds: float) -> str:
    minutes = int(seconds // 60)
    return f"{minutes} min {seconds - 60 * minutes:.0f} s" if minutes else f"{seconds:.0f} s"


def _budget_words(summary: dict[str, Any]) -> str:
    budget = summary["budget"]
    whole = budget["epochs"] + budget["spared"]
    share = f" ({budget['spared'] / whole:.0%} of what all trials would have taken)" if budget["spared"] else ""
    return f"{budget['epochs']:,} epochs were trained; stopping early spared {budget['spared']:,}{share}."


def _section(title: str, text: str, body: str) -> str:
    return f"<section><h2>{escape(title)}</h2><p>{escape(text)}</p>{body}</section>" if body else ""


def _pareto(summary: dict[str, Any], marks: list[Mark]) -> list[str]:
    if len(summary["aims"]) < 2:
        return []
    metrics = {trial["trial"]: trial["metrics"] for trial in summary["trials"]}
    first, second = (aim["name"] for aim in summary["aims"][:2])
    chart = charts.pareto_chart(marks, metrics, summary["pareto"], first, second)
    text = "On the line lie the trials that none beats in one aim without losing in another."
    return [_section("Pareto set", text, chart)]


def _parameters(sweep: RecordedSweep, summary: dict[str, Any], marks: list[Mark]) -> list[str]:
    """Parallel coordinates, importance and slices."""
    space, metric = sweep.about["tune"]["space"], summary["aims"][0]["name"]
    logs = {name for name, item in space.items() if "log_uniform" in item or "int_log_uniform" in item}
    if not any(mark.value is not None for mark in marks):
        return []
    parallel = charts.parallel_chart(marks, list(space), logs, metric, _sign(summary))
    slices = "".join(charts.slice_chart(marks, name, name in logs, metric) for name in space)
    importance = parameter_importance(sweep)
    few = "Too few trials, or too equal ones, to tell."
    return [
        _section("Parallel coordinates", "One line a trial; the darker, the better. Rest the pointer on one to read.",
                 f'<div class="wide">{parallel}</div>'),
        _section("Importance", "Share of the variance that each parameter explains (fANOVA)." if importance else few,
                 charts.importance_chart(importance) if importance else " "),
        _section("Slices", "The metric against each parameter alone.", f'<div class="slices">{slices}</div>'),
    ]  # fmt: skip


def _table(summary: dict[str, Any]) -> str:
    aims = [aim["name"] for aim in summary["aims"]]
    names = list(dict.fromkeys(name for trial in summary["trials"] for name in trial["config"]))
    head = "".join(f"<th>{escape(text)}</th>" for text in ("trial", "state", "epochs", *aims, *names, "reason"))
    best = (summary["best"] or {}).get("trial")
    rows = []
    for trial in summary["trials"]:
        values = [trial["metrics"].get(aim) for aim in aims] + [trial["config"].get(name) for name in names]
        cells = [str(trial["trial"]), trial["state"], str(trial["epochs"])]
        cells += ["" if value is None else label_of(value) for value in values] + [trial["reason"] or ""]
        kind = ' class="winner"' if trial["trial"] == best else ""
        rows.append(f"<tr{kind}>{''.join(f'<td>{escape(cell)}</td>' for cell in cells)}</tr>")
    return f'<div class="wide"><table><tr>{head}</tr>{"".join(rows)}</table></div>'
