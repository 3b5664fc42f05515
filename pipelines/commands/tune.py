"""`penstock tune show | extend | report RUN`: a sweep to read, to grow and to hand on."""

from __future__ import annotations

import argparse
import json
from typing import Any

from components.errors import SpecError
from components.tune.history import RecordedSweep
from components.tune.luck import percent
from components.tune.summary import summarise
from pipelines.run_folder import RunFolder, find_run, penstock_home

METRIC_DIGITS = 4


def command(options: argparse.Namespace) -> int:
    folder = find_run(penstock_home(), options.run)
    return {"show": show, "extend": extend, "report": report}[options.action](folder, options)


def show(folder: RunFolder, options: argparse.Namespace) -> int:
    """Prints every trial, the winner and what was spent."""
    from pipelines.sweeps import open_sweep

    sweep = open_sweep(folder)
    summary = {"schema": 1, "run_id": folder.run_id, **summarise(sweep)}
    if options.json:
        print(json.dumps(summary))
    else:
        print_sweep(summary)
    return 0


def print_sweep(summary: dict[str, Any]) -> None:
    """A table of the trials and a few lines below it."""
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, soft_wrap=True)
    aims = [aim["name"] for aim in summary["aims"]]
    names = list(dict.fromkeys(name for trial in summary["trials"] for name in trial["config"]))
    table = Table(title=f"{summary['run_id']}: {summary['search']}", title_justify="left")
    for column in ("trial", "state", "epochs", *aims, *(name.removeprefix("train.") for name in names)):
        table.add_column(column)
    for trial in summary["trials"]:
        mark = " *" if trial["trial"] == (summary["best"] or {}).get("trial") else ""
        values = [_short(trial["metrics"].get(aim)) for aim in aims]
        config = [_short(trial["config"].get(name)) for name in names]
        state = trial["state"] if trial["repeat_of"] is None else f"repeat of {trial['repeat_of']}"
        table.add_row(f"{trial['trial']}{mark}", state, str(trial["epochs"]), *values, *config)
    console.print(table)
    for line in lines_of(summary):
        console.print(line)


def lines_of(summary: dict[str, Any]) -> list[str]:
    """Winner, Pareto set, counts, budget and failures in words."""
    best, counts, budget = summary["best"], summary["counts"], summary["budget"]
    lines = [", ".join(f"{count} {state}" for state, count in counts.items() if count) + f" of {summary['total']}"]
    if best:
        values = ", ".join(f"{name} {_short(value)}" for name, value in best["aims"].items())
        lines.append(f"best    trial {best['trial']}: {values} on validation")
    if len(summary["aims"]) > 1:
        lines.append(f"pareto  trials {', '.join(map(str, summary['pareto']))}")
    if summary["repeats"]:
        lines.append(f"repeats {repeats_in_words(summary['repeats'])}")
    lines.append(f"spent   {budget['epochs']} epochs in {budget['seconds']:.0f} s of trials; {budget['spared']} spared")
    if summary["observed"]:
        lines.append(f"told    {summary['observed']} earlier trials")
    lines += [f"trial {t['trial']} failed: {t['reason']}" for t in summary["trials"] if t["state"] == "failed"]
    return lines


def repeats_in_words(repeats: dict[str, Any]) -> str:
    """`mean 0.93 over 3 seeds; chance that it only seemed best 21%`."""
    chance, seeds = repeats["chance_only_seemed_best"], max(map(len, repeats["scores"].values()))
    told = "" if chance is None else f"; chance that it only seemed best {percent(chance)}"
    return f"mean {repeats['mean']:.4g} over {seeds} seeds{told}"


def _short(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.{METRIC_DIGITS}g}"
    return str(value.get("architecture", value)) if isinstance(value, dict) else str(value)


def extend(folder: RunFolder, options: argparse.Namespace) -> int:
    """Runs the same spec with more trials: the finished ones are taken over, and what follows the sweep runs again."""
    from pipelines.commands.run import carry_out
    from pipelines.run import RunOptions, prepare
    from pipelines.spec import load_spec
    from pipelines.sweeps import open_sweep

    sweep = open_sweep(folder)
    check_extension(folder, sweep, options.trials)
    values = json.loads((folder.path / "spec.json").read_text())
    loaded = load_spec(values, {"tune.trials": sweep.about["trials"] + options.trials})
    run_options = RunOptions(until=folder.facts().until)
    return carry_out(prepare(loaded, run_options, penstock_home()), run_options, options.json)


def check_extension(folder: RunFolder, sweep: RecordedSweep, trials: int) -> None:
    """Raises SpecError if a sweep cannot grow by that many trials."""
    if trials < 1:
        raise SpecError(f"--trials is {trials}; give at least 1.")
    if sweep.about["tune"]["scheduler"] == "pbt":
        raise SpecError(f"{folder.run_id} is a population, whose members train together; start it with more trials.")
    if not sweep.complete:
        left = sweep.state.total - sweep.state.ended
        raise SpecError(f"{folder.run_id} has {left} trials left; let `penstock run` finish them first.")


def report(folder: RunFolder, options: argparse.Namespace) -> int:
    """Writes the page."""
    from pathlib import Path

    from components.artifacts.local_store import write_durably
    from components.tune.report import render_report
    from pipelines.sweeps import open_sweep

    target = Path(options.output) if options.output else folder.path / "sweep.html"
    write_durably(target.absolute(), render_report(open_sweep(folder), folder.run_id))
    print(json.dumps({"status": "done", "report": str(target.absolute())}) if options.json else target)
    return 0
