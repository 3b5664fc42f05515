"""`penstock run SPEC`: data to endpoint."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from components.errors import SpecError
from pipelines.cli import tell_error
from pipelines.commands import parse_overrides
from pipelines.run import Outcome, RunOptions, execute, prepare
from pipelines.run_folder import RunFolder, penstock_home
from pipelines.stages import ORDER
from pipelines.summary import print_summary
from pipelines.view import make_view


def command(options: argparse.Namespace) -> int:
    from pipelines.spec import load_spec

    if options.until is not None and options.until not in ORDER:
        raise SpecError(f"--until is {options.until!r}; allowed: {', '.join(ORDER)}.")
    if options.resume and options.fresh:
        raise SpecError("--resume and --fresh exclude each other; give one of them.")
    if options.accept_changes and not options.resume:
        raise SpecError("--accept-changes needs --resume RUN: it says of which run.")
    names = ("until", "fresh", "resume", "accept_changes", "offline", "debug")
    run_options = RunOptions(**{name: getattr(options, name) for name in names})
    loaded = load_spec(options.spec, parse_overrides(options.set))
    return carry_out(prepare(loaded, run_options, penstock_home()), run_options, options.json)


def carry_out(folder: RunFolder, options: RunOptions, as_json: bool) -> int:
    """Executes a run that was made, shows it, and prints how it ended."""
    from pipelines.runner import planned

    if not as_json:
        print(f"run {folder.run_id}   {folder.path}", file=sys.stderr)
        for text in told_before(folder):
            print(f"  {text}", file=sys.stderr)
    stages = [plan.name for plan in planned(folder, folder.facts())]
    return tell(execute(folder, options, make_view(stages, quiet=as_json)), folder, as_json)


def told_before(folder: RunFolder) -> list[str]:
    """What was said of a run since its last attempt began; the view shows what comes after."""
    texts: list[str] = []
    for event in folder.events():
        if event["kind"] == "attempt":
            texts = []
        elif event["kind"] == "warning" and event["stage"] == "run":
            texts.append(event["text"])
    return texts


def tell(outcome: Outcome, folder: RunFolder, as_json: bool) -> int:
    """Prints how a run ended."""
    if as_json:
        error = {"error": _shown(outcome.error)} if outcome.error else {}
        print(json.dumps({**outcome.result, **error}))
    elif outcome.error:
        tell_error(outcome.error, outcome.exit_code, as_json=False)
        if outcome.error.get("log") and outcome.error["kind"] == "internal":
            print(f"          the log is {Path(outcome.error['log'])}", file=sys.stderr)
    else:
        print_summary(outcome.result, folder)
    return outcome.exit_code


def _shown(error: dict[str, Any]) -> dict[str, Any]:
    return {name: error.get(name) for name in ("kind", "message", "field", "line", "hint")}
