"""The compress stage: every candidate made and measured, the best within tolerance kept. See README.md."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.artifacts import Artifact, Draft, Ref, open_artifact, write_artifact
from components.artifacts.dataset import open_split
from components.artifacts.manifest import MANIFEST_NAME
from components.compress.candidates import FLOAT32, Work, judge_candidate, with_latency
from components.compress.choose import Candidate, best_rejected, choose
from components.compress.config import CompressConfig
from components.compress.measure import Rows, measure_once, run_graph
from components.config import Config
from components.context import Context
from components.errors import StageError

if TYPE_CHECKING:
    import numpy as np

LATENCY_ROWS = 10
"""Validation rows that latency is measured on, one a run."""
CHECK_TOLERANCE = 1e-3
"""Largest difference of a logit between torch and ONNX float32, as a share of the largest logit (at least 1)."""


class StageConfig(Config):
    """The fields of the spec that this stage reads."""

    task: str
    seed: int = 0
    compress: CompressConfig = CompressConfig()


def run(config: StageConfig, inputs: Mapping[str, Ref], output: str, context: Context) -> Artifact:
    """Compresses `inputs["model"]`, judged on the validation rows of `inputs["dataset"]`.

    Raises:
        StageError: If the float32 graph cannot be made or does not compute what the trained network does.
    """
    dataset = open_artifact(inputs["dataset"], kind="dataset")
    model = open_artifact(inputs["model"], kind="model")
    work = prepare_work(config, dataset.path, model.path, context.work_folder)
    candidates = measure_candidates(work, context)
    listed = [candidate for candidate in candidates if candidate.method in config.compress.candidates]
    chosen = choose(listed, config.compress.prefer)
    kept = chosen or best_rejected(listed) or candidates[0]
    for step, candidate in enumerate(candidates):
        report_candidate(candidate, step, work.task.deciding_metric, context)
    if chosen is None:
        context.warn(f"No candidate is within max_drop {config.compress.accept.max_drop}; the gate will refuse.")
    with write_artifact(output, "compression", inputs, context) as draft:
        draft.write_json("candidates.json", [candidate.as_dict() for candidate in candidates], content=False)
        nested = write_served_model(draft, work, kept, inputs, context)
        (draft.path / FLOAT32).mkdir()
        shutil.copyfile(work.graph(FLOAT32), draft.path / FLOAT32 / "model.onnx")
        draft.metadata.update(summary(kept, chosen is not None, nested.digest))
    assert draft.artifact is not None
    return draft.artifact


def prepare_work(config: StageConfig, dataset: Path, model: Path, work_folder: Path) -> Work:
    """Runs the trained network on the validation rows, exports it, and checks that the export computes the same."""
    import numpy as np

    from components.compress.export import export_onnx
    from components.models.predictor import TorchPredictor
    from components.tasks import get_task

    folder = work_folder / "graphs"
    folder.mkdir(parents=True, exist_ok=True)
    predictor = TorchPredictor(model, threads=1)
    train, validation = open_split(dataset, "train"), open_split(dataset, "validation")
    count = min(config.compress.calibration_samples, len(train))
    drawn = np.sort(np.random.default_rng(config.seed).choice(len(train), count, replace=False))
    work = Work(
        task=get_task(config.task),
        config=config.compress,
        model=model,
        folder=folder,
        calibration=Rows(train, predictor.preprocessing, drawn),
        validation=(rows := Rows(validation, predictor.preprocessing, np.arange(len(validation)))),
        labels=validation.labels(),
        reference=np.concatenate([predictor.logits(batch) for batch in rows.batches()]),
    )
    export_onnx(predictor.module, next(rows.batches()), work.graph(FLOAT32))
    check_export(work.reference, run_graph(work.graph(FLOAT32), rows.batches()))
    return work


def check_export(reference: np.ndarray, exported: np.ndarray) -> None:
    """Raises StageError if the float32 graph does not compute what the trained network does."""
    import numpy as np

    error, scale = float(np.abs(reference - exported).max()), max(1.0, float(np.abs(reference).max()))
    if not error <= CHECK_TOLERANCE * scale:
        raise StageError(
            f"The ONNX graph differs from the trained network by {error:.2g} in a logit (the largest is {scale:.2g}); "
            "set `compress: false` to go on without it."
        )


def measure_candidates(work: Work, context: Context) -> list[Candidate]:
    """The float32 reference and every listed candidate, made and measured; float32 first."""
    methods = list(dict.fromkeys([FLOAT32, *work.config.candidates]))
    judged = []
    for step, method in enumerate(methods, start=1):
        judged.append(judge_candidate(work, method))
        context.event("progress", step, len(methods), measured(judged[-1], work.task.deciding_metric), candidate=method)
    graphs = {candidate.method: work.graph(candidate.method) for candidate in judged if candidate.metrics}
    sample = Rows(work.validation.split, work.validation.preprocessing, work.validation.indices[:LATENCY_ROWS])
    latencies_ms = measure_once(graphs, list(sample.batches(1)), work.folder.parent)
    return [with_latency(candidate, latencies_ms) for candidate in judged]


def measured(candidate: Candidate, metric: str) -> dict[str, float]:
    """What is known of a candidate, as flat numbers."""
    values: dict[str, Any] = {
        "size_bytes": candidate.size_bytes,
        "size_ratio": candidate.size_ratio,
        "drop": candidate.drop,
        metric: candidate.metrics.get("validation", {}).get(metric),
        "speedup": candidate.speedup,
        **{f"latency_{name}_ms": value for name, value in (candidate.latency_ms or {}).items()},
    }
    return {name: float(value) for name, value in values.items() if value is not None}


def report_candidate(candidate: Candidate, step: int, metric: str, context: Context) -> None:
    """Tells the user and the tracker how one candidate did."""
    values = measured(candidate, metric)
    context.track("metrics", step=step, metrics={f"compress/{candidate.method}/{k}": v for k, v in values.items()})
    if candidate.error is not None:
        context.warn(f"{candidate.method} cannot be used: {candidate.error}.")
        return
    context.event(
        "note",
        metrics=values,
        candidate=candidate.method,
        text=f"{candidate.method}: {values['size_bytes'] / 1e6:.2f} MB ({values['size_ratio']:.1f}x smaller), "
        f"p50 {values['latency_p50_ms']:.2f} ms ({values['speedup']:.1f}x), {metric} {values[metric]:.4f} "
        f"({0 - values['drop']:+.4f}) {'within' if candidate.accepted else 'out of'} tolerance",
    )


def write_served_model(
    draft: Draft, work: Work, kept: Candidate, inputs: Mapping[str, Ref], context: Context
) -> Artifact:
    """Writes `model/`: an artifact of its own, which is what gets registered and served."""
    from components.models.folder import load_preprocessing, read_model_values, save_model_folder

    values = {**read_model_values(work.model), "method": kept.method}
    with write_artifact(str(draft.path / "model"), "model", inputs, context) as nested:
        save_model_folder(nested.path, values, load_preprocessing(work.model, values), weights=None)
        shutil.copyfile(work.graph(kept.method), nested.path / "model.onnx")
        nested.metadata.update({"method": kept.method, "size_bytes": kept.size_bytes, "metrics": kept.metrics})
    # The nested manifest holds run facts (code version, spec), which are no content.
    draft.not_content.add(f"model/{MANIFEST_NAME}")
    assert nested.artifact is not None
    return nested.artifact


def summary(kept: Candidate, passed: bool, model_digest: str) -> dict[str, Any]:
    """The metadata of the artifact."""
    names: Sequence[str] = ("method", "size_bytes", "size_ratio", "latency_ms", "speedup", "metrics", "drop", "error")
    values = kept.as_dict()
    return {"passed": passed, "model_digest": model_digest, **{name: values[name] for name in names}}
