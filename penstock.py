"""Penstock from Python; the same code as the command line.

import penstock
run = penstock.run("digits", {"train.epochs": 5})
print(run.result["compressed"]["metrics"]["test"]["accuracy"], run.url)
penstock.predict(run.url, inputs=[[[0, 0], [0, 0]]])
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components.errors import PenstockError
from pipelines.run import RunOptions
from pipelines.spec import LoadedSpec, Spec, load_spec

__all__ = ["LoadedSpec", "PenstockError", "Run", "RunOptions", "Spec", "load_spec", "predict", "run"]


@dataclass(frozen=True)
class Run:
    """A run that has ended. `result` is what `penstock run --json` prints.

    Attributes:
        exit_code: 0 done, 1 a stage failed, 3 the gate refused, 130 interrupted.
        error: Why it failed: kind, message, field, line, hint; None if it did not.
    """

    result: dict[str, Any]
    exit_code: int
    error: dict[str, Any] | None = None

    @property
    def run_id(self) -> str:
        return self.result["run_id"]

    @property
    def url(self) -> str | None:
        """Root of the endpoint, or None."""
        return (self.result["endpoint"] or {}).get("url")


def run(
    spec: str | Path | Mapping[str, Any], overrides: Mapping[str, Any] | None = None, options: RunOptions | None = None
) -> Run:
    """Runs a spec (a file, a recipe's name, or the values) under PENSTOCK_HOME.

    Raises:
        PenstockError: If the spec or the data is wrong, or the run is owned by another command. A stage that fails
            does not raise: see `Run.error`.
    """
    from pipelines.run import run as run_spec

    outcome = run_spec(spec, overrides, options)
    return Run(outcome.result, outcome.exit_code, outcome.error)


def predict(
    target: str | Path,
    inputs: Sequence[Any] = (),
    files: Sequence[str | Path] = (),
    options: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Asks an endpoint (a URL), or a model (a run, a registered name or a folder) in this process.

    Args:
        options: How a model that writes texts does it: max_new_tokens, temperature, top_k, top_p, seed, num_beams.

    Returns:
        {"predictions": [{"label", "score"}, ...], "model": {"name", "version", "digest"}}; texts are {"text"}.
    """
    from pipelines.model_source import predict_with

    return predict_with(str(target), list(inputs), [Path(file) for file in files], options)
