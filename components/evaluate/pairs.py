"""Models that write a target for a source, on the test rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.artifacts.dataset import open_split
from components.context import Context
from components.evaluate.answers import row_batches
from components.evaluate.config import EvaluateConfig
from components.evaluate.guesses import best_guess
from components.evaluate.written import Options, measure_losses, measure_texts
from components.tasks import get_task

if TYPE_CHECKING:
    import numpy as np

    from components.artifacts.dataset import Split
    from components.models.predictor import Predictor


def evaluate_pairs(
    dataset: Path, predictor: Predictor, config: EvaluateConfig, seed: int, context: Context
) -> tuple[dict[str, Any], dict[str, list[str]], str | None]:
    """The trained model and the best guess on the test rows, of which there must be some.

    Returns:
        Metrics by model, the texts of each, and the kind of guess.
    """
    test = open_split(dataset, "test")
    texts = {"trained": write_texts(predictor, test, config.num_beams, context)}
    kind = None
    if config.baseline:
        kind, guess = best_guess(open_split(dataset, "train"), open_split(dataset, "validation"), seed)
        texts["baseline"] = guess(test.column("source"))
    options, references = Options(config.confidence, config.resamples, seed), test.column("target")
    results = {name: measure_texts(each, references, options) for name, each in texts.items()}
    nats, tokens = score_targets(predictor, test)
    results["trained"] |= measure_losses(nats, tokens, options)
    return results, texts, kind


def write_texts(predictor: Predictor, split: Split, num_beams: int, context: Context) -> list[str]:
    """What the model writes for each source."""
    task, sources = get_task(predictor.task), split.table.column("source")
    texts: list[str] = []
    for rows in row_batches(len(split)):
        answers = task.answer(predictor, {"source": sources.take(rows).to_pylist()}, {"num_beams": num_beams})
        texts += [answer["text"] for answer in answers]
        context.event("progress", len(texts), len(split))
    return texts


def score_targets(predictor: Predictor, split: Split) -> tuple[np.ndarray, np.ndarray]:
    """Nats that each target costs, and its tokens, float64, shape (rows,)."""
    import numpy as np
    import torch

    task, parts = get_task(predictor.task), []
    for rows in row_batches(len(split)):
        encoded = split.take(rows)
        logits = torch.from_numpy(predictor.logits(predictor.preprocessing.collate(encoded)))
        labels = predictor.preprocessing.collate_labels(encoded)
        parts.append(task.outputs(logits, torch.as_tensor(labels)).double().numpy())
    outputs = np.concatenate(parts)
    return outputs[:, 0], outputs[:, 1]


def write_texts_file(path: Path, split: Split, texts: Mapping[str, Sequence[str]]) -> None:
    """Writes one row a test example: id, target, and of each model `<model>_predicted`."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns: dict[str, Any] = {name: split.table.column(name) for name in ("id", "target")}
    columns |= {f"{name}_predicted": pa.array(each, pa.string()) for name, each in texts.items()}
    pq.write_table(pa.table(columns), path)


def describe(name: str, measured: Mapping[str, Any]) -> str:
    """One line for the user."""
    low, high = measured["exact_match"]["interval"]
    loss = f", loss {measured['loss']['value']:.4f} nats a token" if "loss" in measured else ""
    return (
        f"{name}: test exact match {measured['exact_match']['value']:.4f} [{low:.4f}, {high:.4f}], BLEU "
        f"{measured['bleu']['value']:.2f}, ROUGE-L {measured['rougeL']['value']:.4f}{loss} (n = {measured['n']})"
    )
