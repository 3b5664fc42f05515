"""The answers of each model on the test rows, and the Parquet file that keeps them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.evaluate.metrics import NO_CLASS, Answers

if TYPE_CHECKING:
    import numpy as np

    from components.artifacts.dataset import Split
    from components.models.predictor import Predictor

BATCH_ROWS = 32
"""Rows a forward pass: what the endpoint batches at most by default (int8-dynamic scales depend on the batch)."""


def answer_rows(predictor: Predictor, split: Split) -> np.ndarray:
    """Log probabilities, float64, shape (rows, the model's classes), from the rows as the dataset encoded them."""
    batches = (predictor.preprocessing.collate(split.take(rows)) for rows in row_batches(len(split)))
    return run_batches(predictor, batches)


def answer_raw_rows(predictor: Predictor, split: Split, feature: str) -> np.ndarray:
    """As `answer_rows`, for a model with a preprocessing of its own: it starts from the raw column `feature`."""
    column, own = split.table.column(feature), predictor.preprocessing
    batches = (own.collate(own.encode({feature: column.take(rows).to_pylist()})) for rows in row_batches(len(split)))
    return run_batches(predictor, batches)


def row_batches(count: int) -> Iterator[list[int]]:
    return (list(range(start, min(start + BATCH_ROWS, count))) for start in range(0, count, BATCH_ROWS))


def run_batches(predictor: Predictor, batches: Iterator[Mapping[str, np.ndarray]]) -> np.ndarray:
    import numpy as np

    logits = np.concatenate([predictor.logits(batch) for batch in batches]).astype(np.float64)
    shifted = logits - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def to_answers(
    log_probabilities: np.ndarray, own: Sequence[str], classes: Sequence[str], labels: np.ndarray
) -> Answers:
    """Brings a model's own classes to the dataset's.

    Args:
        log_probabilities: Shape (n, len(own)).
        own: The model's class names; a predicted one that the dataset lacks becomes NO_CLASS.
        classes: The dataset's class names.
        labels: The truth as indices into `classes`; the loss exists only if the model knows all of them.
    """
    import numpy as np

    place = {label: index for index, label in enumerate(classes)}
    to_class = np.array([place.get(label, NO_CLASS) for label in own])
    best = log_probabilities.argmax(axis=1)
    scores = np.exp(log_probabilities.max(axis=1))
    loss = None
    if set(classes) <= set(own):
        columns = np.array([list(own).index(label) for label in classes])
        loss = -log_probabilities[np.arange(len(labels)), columns[labels]]
    return Answers(to_class[best], scores, loss)


def write_predictions(path: Path, split: Split, classes: Sequence[str], answers: Mapping[str, Answers]) -> None:
    """Writes one row a test example: id, label, and of each model `<model>_predicted` and `<model>_score`."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns: dict[str, Any] = {
        "id": split.table.column("id"),
        "label": pa.array([classes[index] for index in split.labels()], pa.string()),
    }
    for name, given in answers.items():
        names = [classes[index] if index != NO_CLASS else None for index in given.predicted]
        columns[f"{name}_predicted"] = pa.array(names, pa.string())
        columns[f"{name}_score"] = pa.array(given.scores, pa.float64())
    pq.write_table(pa.table(columns), path)
