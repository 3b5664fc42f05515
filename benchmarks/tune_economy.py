"""What a clever search spares: best score so far against steps, beside the full grid. `make bench-tune_economy`.

On digits, and on AG News where PENSTOCK_DATA names its folder. The whole grid of 27 is trained for each of five seeds.
A trial's learning curve depends on its configuration and seed alone, so the other searches over the same grid read the
recorded curves instead of training again: the same decisions, without the hours. Killed, the same command goes on.

Asked for: Bayesian + ASHA within 0.5 points of the grid's best with at most a third of its steps, median of the seeds.
`SEEDS=2 DATA=digits` makes it short.
"""

from __future__ import annotations

import os
import shutil
import statistics
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from components.artifacts import Ref
from components.context import Context
from components.data import stage as data_stage
from components.tune.history import RecordedSweep, read_sweep
from components.tune.stage import JOURNAL_NAME, StageConfig, run

SEEDS = int(os.environ.get("SEEDS", "5"))
STATE = Path(".penstock") / "bench-economy"
POINTS = 0.005
"""Within this of the grid's best counts as reached."""
SHARES = (0.1, 0.2, 1 / 3, 0.5, 1.0)
"""Shares of the grid's steps at which the best so far is told."""

DIGITS: dict[str, Any] = {
    "task": "image-classification",
    "data": {"source": "builtin://digits", "split": {"validation": 0.3, "test": 0.1}},
    "model": {"architecture": "mlp"},
    "train": {"epochs": 9, "global_batch_size": 64, "precision": "fp32"},
    "space": {
        "train.learning_rate": {"choice": [3e-4, 1e-3, 3e-3]},
        "model.hidden_sizes": {"choice": [[16], [64], [64, 64]]},
        "model.dropout": {"choice": [0.0, 0.2, 0.5]},
    },
}
NEWS: dict[str, Any] = {
    "task": "text-classification",
    "data": {"source": "", "columns": {"text": "text", "label": "label"}, "split": {"validation": 0.1, "test": 0.1}},
    "model": {"architecture": "text-cnn"},
    "train": {"epochs": 6, "global_batch_size": 128, "precision": "fp32"},
    "space": {
        "train.learning_rate": {"choice": [3e-4, 1e-3, 3e-3]},
        "model.embedding_size": {"choice": [16, 32, 64]},
        "model.num_filters": {"choice": [16, 32, 64]},
    },
}
SEARCHES: dict[str, dict[str, Any]] = {
    "grid": {"search": "grid"},
    "random": {"search": "random", "trials": 27},
    "bayesian": {"search": "bayesian", "trials": 27},
    "bayesian + asha": {
        "search": "bayesian", "trials": 27, "scheduler": "asha", "asha": {"grace_epochs": 1, "reduction_factor": 3}
    },
}  # fmt: skip


def make_context(folder: Path) -> Context:
    (folder / "run").mkdir(parents=True, exist_ok=True)
    (folder / "work").mkdir(exist_ok=True)
    return Context("economy", "tune", folder, folder / "run", folder / "work", debug=True)


def make_dataset(problem: Mapping[str, Any], folder: Path) -> Ref:
    """The data, prepared once; `folder` is its own."""
    from components.artifacts import open_artifact
    from components.errors import ArtifactError

    try:
        return open_artifact(str(folder / "dataset"), kind="dataset").ref
    except ArtifactError:
        config = data_stage.StageConfig.model_validate({"task": problem["task"], "data": problem["data"]})
        return data_stage.run(config, {}, str(folder / "dataset"), make_context(folder)).ref


def sweep_config(problem: Mapping[str, Any], seed: int, search: Mapping[str, Any]) -> StageConfig:
    sections = {name: problem[name] for name in ("task", "model", "train")}
    return StageConfig.model_validate({**sections, "seed": seed, "tune": {"space": problem["space"], **search}})


def train_grid(problem: Mapping[str, Any], dataset: Ref, seed: int, folder: Path) -> RecordedSweep:
    """The whole grid, really trained; goes on where an earlier start was killed."""
    context = make_context(folder)
    run(sweep_config(problem, seed, SEARCHES["grid"]), {"dataset": dataset}, str(folder / "sweep"), context)
    return read_sweep(folder / "work" / JOURNAL_NAME)


def replay(problem: Mapping[str, Any], dataset: Ref, seed: int, search: str, grid: RecordedSweep) -> RecordedSweep:
    """Another search over the grid's recorded curves."""
    curves = {key_of(trial.config): trial.reports for trial in grid.state.in_order()}

    def recorded(job: Any, worker: Any) -> None:
        config = {name: value_of(job, name) for name in problem["space"]}
        for epoch, metrics in sorted(curves[key_of(config)].items()):
            worker.report(epoch, metrics)

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config = sweep_config(problem, seed, SEARCHES[search])
        run(config, {"dataset": dataset}, str(folder / "sweep"), make_context(folder), train=recorded)  # type: ignore[arg-type]
        return read_sweep(folder / "work" / JOURNAL_NAME)


def key_of(config: Mapping[str, Any]) -> str:
    return repr(sorted((name, list(v) if isinstance(v, tuple) else v) for name, v in config.items()))


def value_of(job: Any, name: str) -> Any:
    section, field = name.split(".")
    value = getattr(getattr(job, section), field)
    return list(value) if isinstance(value, tuple) else value


def best_so_far(sweep: RecordedSweep) -> Iterator[float]:
    """The best score after each epoch that any trial trained, in the order of the journal."""
    best, metric, sign = -float("inf"), sweep.state.facts.metric, sweep.state.facts.aims[0].sign
    for record in sweep.records:
        if record["kind"] == "report":
            best = max(best, sign * record["metrics"][metric])
            yield best


def main() -> None:
    news = os.environ.get("PENSTOCK_DATA")
    NEWS["data"]["source"] = f"{news}/ag_news.csv"
    wanted = os.environ.get("DATA", "digits news" if news else "digits").split()
    problems = {name: problem for name, problem in (("digits", DIGITS), ("news", NEWS)) if name in wanted}
    for name, problem in problems.items():
        table(name, problem)


def table(name: str, problem: Mapping[str, Any]) -> None:
    """Trains, replays and prints one problem."""
    dataset = make_dataset(problem, STATE / name)
    curves: dict[str, list[list[float]]] = {search: [] for search in SEARCHES}
    for seed in range(SEEDS):
        grid = train_grid(problem, dataset, seed, STATE / name / f"seed-{seed}")
        for search in SEARCHES:
            sweep = grid if search == "grid" else replay(problem, dataset, seed, search, grid)
            curves[search].append(list(best_so_far(sweep)))
    whole = len(curves["grid"][0])
    print(f"{name}: 27 configurations, {whole} epochs in the grid, medians of {SEEDS} seeds")
    shares = "  ".join(f"{share:>6.0%}" for share in SHARES)
    print(
        f"                   best so far at this share of the grid's epochs:  {shares}   reached after  epochs in all"
    )
    for search, found in curves.items():
        points = [statistics.median(curve[min(len(curve), max(1, round(share * whole))) - 1] for curve in found)
                  for share in SHARES]  # fmt: skip
        reached = [reach(curve, target[-1]) for curve, target in zip(found, curves["grid"], strict=True)]
        share = statistics.median((count or 2 * whole) / whole for count in reached)
        told = f"{share:6.0%}" if share <= 1 else " never"
        total = statistics.median(map(len, found)) / whole
        print(f"  {search:58}  {'  '.join(f'{point:6.4f}' for point in points)}   {told:>13}  {total:12.0%}")


def reach(curve: list[float], target: float) -> int | None:
    """Epochs until the score was within half a point of the target; None if it never was."""
    return next((count for count, best in enumerate(curve, start=1) if best >= target - POINTS), None)


if __name__ == "__main__":
    if "--fresh" in sys.argv:
        shutil.rmtree(STATE, ignore_errors=True)
    main()
