"""The train stage: from a Dataset, and a Sweep's winner where there is one, to a Model."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from components.artifacts import Artifact, Draft, Ref, open_artifact, write_artifact
from components.config import Config, dotted_names
from components.context import Context
from components.errors import DataError, name_error
from components.models.build import build_model, parse_model_config
from components.models.config import ModelConfig
from components.models.folder import WEIGHTS_NAME, model_values, save_model_folder
from components.tasks import get_task
from components.train.config import TrainConfig
from components.train.job import TrainJob, TrainResult
from components.train.launch import launch
from components.train.session import SEQ_LEN, network_inputs

KEPT_FROM_SPEC = (
    "workers",
    "min_workers",
    "max_restarts",
    "zero",
    "environment",
    "epochs",
    "max_steps",
    "validate_every_steps",
    "checkpoint_every_epochs",
    "checkpoint_every_steps",
    "checkpoint_in_background",
    "keep_checkpoints",
)
"""Fields of `train` that say how the final training runs, so a sweep's winner does not decide them."""


PREDICTED_PARAMETERS = 1_000_000
"""Networks from here on have their memory predicted beside the measured peak."""


class StageConfig(Config):
    """The fields this stage reads."""

    task: str
    seed: int
    model: ModelConfig
    train: TrainConfig


def run(config: StageConfig, inputs: Mapping[str, Ref], output: str, context: Context) -> Artifact:
    """Trains and writes the best epoch as a Model.

    Args:
        config: What to train; the model and training of a sweep's winner win over it.
        inputs: `dataset`, and `sweep` where a search was made.
        output: URI of the Model.
        context: Checkpoints lie in its work folder; a restarted stage continues from there.
    """
    dataset = open_artifact(inputs["dataset"], kind="dataset")
    sweep = open_artifact(inputs["sweep"], kind="sweep") if "sweep" in inputs else None
    job = make_job(config, dataset.path, sweep, context)
    check_samples(job)
    result = launch(job, context)
    tell(job, result, context)
    with write_artifact(output, "model", inputs, context) as draft:
        write_model(draft, job, result)
        draft.metadata["facts"]["predicted_peak_memory_bytes"] = predict_peak(job, result, context)
    assert draft.artifact is not None
    return draft.artifact


def make_job(config: StageConfig, dataset: Path, sweep: Artifact | None, context: Context) -> TrainJob:
    """The training run: the spec's, or the winner's with the spec's workers, sharding and epochs."""
    model, train = config.model, config.train
    if sweep is not None:
        model, train = winner(sweep.read_json("best.json"), config.train)
    return TrainJob(
        task=config.task,
        model=model,
        train=train,
        seed=config.seed,
        dataset=dataset,
        work_folder=context.work_folder,
        key_file=context.work_folder / "key",
    )


def winner(best: Mapping[str, Any], spec: TrainConfig) -> tuple[ModelConfig, TrainConfig]:
    """Model and training of a sweep's best trial, to be trained again as the spec says.

    A batch that the winner chose may not divide by all numbers of workers; then it is rounded up to one that does.
    """
    searched = TrainConfig.model_validate(best["train"])
    values = {**searched.model_dump(), **{name: spec.model_dump()[name] for name in KEPT_FROM_SPEC}}
    parts = math.lcm(*spec.world_sizes()) * values["gradient_accumulation_steps"]
    values["global_batch_size"] = -(-values["global_batch_size"] // parts) * parts
    return parse_model_config(best["model"]), TrainConfig.model_validate(values)


def check_samples(job: TrainJob) -> None:
    """Before any worker starts: whether a language model's splits hold a window each.

    Raises:
        DataError: Saying how many tokens there are.
    """
    if not get_task(job.task).packed:
        return
    tokens = json.loads((job.dataset / "schema.json").read_text())["tokens"]
    seq_len = job.train.seq_len or SEQ_LEN
    for name in ("train", "validation"):
        if tokens[name] <= seq_len:
            raise DataError(
                f"The {name} split has {tokens[name]} tokens, and one sequence takes {seq_len} and the token after it "
                "(train.seq_len); give more text, or make train.seq_len smaller.",
                field="train.seq_len",
            )


def predict_peak(job: TrainJob, result: TrainResult, context: Context) -> int | None:
    """What the planner says of this training, to stand beside the `peak_memory_bytes` that it measured.

    None for a network so small that what the process itself takes hides it: its rehearsal would be seconds for nothing.
    """
    if result.facts["parameters"] < PREDICTED_PARAMETERS:
        return None
    from components.train.plan.forecast import forecast_peak

    try:
        return forecast_peak(job, result.facts)
    except Exception as error:  # noqa: BLE001 (a forecast must not cost a training that has ended)
        context.warn(f"No memory was predicted for this training ({name_error(error)}).")
        return None


def tell(job: TrainJob, result: TrainResult, context: Context) -> None:
    """Says what was trained in the tracking journal."""
    values = {"model": job.model.model_dump(mode="json"), "train": job.train.model_dump(mode="json")}
    context.track("params", params={**dotted_names(values), "seed": job.seed})
    context.track("metrics", step=result.best_epoch, metrics={f"best_{k}": v for k, v in result.metrics.items()})


def write_model(draft: Draft, job: TrainJob, result: TrainResult) -> None:
    """Fills the Model: content is weights, config and preprocessing; metrics and history are not."""
    preprocessing = get_task(job.task).load(job.dataset / "preprocess")
    inputs = network_inputs(job, preprocessing)
    # Only a pretrained network has a shape that the spec's own fields do not tell.
    pretrained = job.model.pretrained is not None
    module = build_model(job.model, inputs, len(preprocessing.classes)) if pretrained else None
    save_model_folder(
        draft.path, model_values(job.task, job.model, inputs, preprocessing.classes, module), preprocessing, None
    )
    shutil.copyfile(result.weights, draft.path / WEIGHTS_NAME)
    draft.write_json("metrics.json", {"validation": dict(result.metrics)}, content=False)
    draft.write_json("history.json", result.history, content=False)
    draft.metadata = {
        "parameters": result.facts["parameters"],
        "size_bytes": serving_bytes(draft.path),
        "metrics": {"validation": dict(result.metrics)},
        "best_epoch": result.best_epoch,
        "facts": json.loads(json.dumps(dict(result.facts))),
    }


def serving_bytes(folder: Path) -> int:
    """Bytes needed to serve: weights and preprocessing."""
    parts = [folder / WEIGHTS_NAME, *(path for path in (folder / "preprocess").rglob("*") if path.is_file())]
    return sum(path.stat().st_size for path in parts)
