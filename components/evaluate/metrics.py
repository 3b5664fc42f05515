"""Test metrics of a classifier, each with its interval and how that was found.

Accuracy, precision, recall and F1 by class have closed intervals (`intervals.py`). The macro averages are bootstrapped
over the test examples; where the bootstrap cannot move (all right, or all wrong) they take the interval that follows
from those of the classes, so that no interval is ever a point.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from components.evaluate.intervals import Interval, f1_interval, mean_interval, normal_quantile, wilson

if TYPE_CHECKING:
    import numpy as np

MACRO_NAMES = ("precision", "recall", "f1")
NO_CLASS = -1
"""Predicted index of a label that the dataset does not have (a champion trained on other classes)."""


@dataclass(frozen=True)
class Answers:
    """What one model says about n test examples.

    Attributes:
        predicted: Class indices, int64, shape (n,); NO_CLASS for a label the dataset does not have.
        scores: Probability of the predicted class, shape (n,).
        loss: Cross-entropy of each example in nats, shape (n,); None where it does not exist.
    """

    predicted: np.ndarray
    scores: np.ndarray
    loss: np.ndarray | None


def measure(answers: Answers, labels: np.ndarray, classes: tuple[str, ...], options: tuple[float, int, int]) -> dict:
    """All metrics of one model.

    Args:
        answers: Of n >= 1 examples.
        labels: Class indices, shape (n,).
        options: Confidence of the intervals, bootstrap resamples, seed.

    Returns:
        {metric: {"value", "interval", "method"}, "n", "per_class": {label: {...}}, "confusion_matrix": rows are truth}.
    """
    confidence, resamples, seed = options
    counts = count_confusion(answers.predicted, labels, len(classes))
    hits, n = int(counts.trace()), len(labels)
    result: dict[str, Any] = {"n": n, "accuracy": stated(hits / n, wilson(hits, n, confidence), "wilson")}
    by_class = class_scores(counts, confidence)
    samples = bootstrap_macro(counts, resamples, seed)
    for name in MACRO_NAMES:
        result[name] = macro_score([scores[name] for scores in by_class if scores], samples[name], confidence)
    if answers.loss is not None:
        result["loss"] = mean_loss(answers.loss, confidence)
    result["per_class"] = {
        label: {**scores, "support": int(counts[index].sum())}
        for index, (label, scores) in enumerate(zip(classes, by_class, strict=True))
    }
    result["confusion_matrix"] = counts[:, : len(classes)].tolist()
    return result


def count_confusion(predicted: np.ndarray, labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Counts, int64, shape (classes, classes + 1): rows are the truth; the last column counts NO_CLASS."""
    import numpy as np

    columns = np.where(predicted == NO_CLASS, num_classes, predicted)
    cells = np.bincount(labels * (num_classes + 1) + columns, minlength=num_classes * (num_classes + 1))
    return cells.reshape(num_classes, num_classes + 1)


def class_scores(counts: np.ndarray, confidence: float) -> list[dict[str, Any]]:
    """Precision, recall and F1 of each class; empty for a class that neither occurs nor is predicted."""
    result = []
    for index in range(len(counts)):
        hits, actual, predicted = (int(x) for x in (counts[index, index], counts[index].sum(), counts[:, index].sum()))
        errors = actual + predicted - 2 * hits
        result.append(
            {
                "precision": stated(hits / max(predicted, 1), wilson(hits, predicted, confidence), "wilson"),
                "recall": stated(hits / max(actual, 1), wilson(hits, actual, confidence), "wilson"),
                "f1": stated(2 * hits / (actual + predicted), f1_interval(hits, errors, confidence), "wilson-jaccard"),
            }
            if actual + predicted
            else {}
        )
    return result


def bootstrap_macro(counts: np.ndarray, resamples: int, seed: int) -> dict[str, np.ndarray]:
    """Macro precision, recall and F1 of resampled test sets, each of shape (resamples,).

    Drawing n examples with replacement is drawing the cells of the confusion matrix from a multinomial law.
    """
    import numpy as np

    n, classes = counts.sum(), len(counts)
    draws = np.random.default_rng(seed).multinomial(n, counts.ravel() / n, size=resamples)
    tables = draws.reshape(resamples, *counts.shape)
    hits = np.diagonal(tables, axis1=1, axis2=2).astype(float)
    actual, predicted = tables.sum(axis=2), tables.sum(axis=1)[:, :classes]
    seen = np.maximum(((actual + predicted) > 0).sum(axis=1), 1)
    scores = {
        "precision": hits / np.maximum(predicted, 1),
        "recall": hits / np.maximum(actual, 1),
        "f1": 2 * hits / np.maximum(actual + predicted, 1),
    }
    return {name: values.sum(axis=1) / seen for name, values in scores.items()}


def macro_score(scores: list[dict[str, Any]], samples: np.ndarray, confidence: float) -> dict[str, Any]:
    """The mean over classes, with the bootstrap's percentiles or, where those are a point, the classes' intervals."""
    import numpy as np

    values = [score["value"] for score in scores]
    value = sum(values) / len(values)
    tail = (1 - confidence) / 2
    low, high = (float(limit) for limit in np.quantile(samples, [tail, 1 - tail]))
    if high - low > 1e-9 and low <= value <= high:
        return stated(value, (low, high), "bootstrap")
    return stated(value, mean_interval(values, [tuple(score["interval"]) for score in scores]), "mover-wilson")


def mean_loss(losses: np.ndarray, confidence: float) -> dict[str, Any]:
    """The mean loss with its normal interval."""
    import numpy as np

    mean = float(losses.mean())
    half = normal_quantile(confidence) * float(losses.std(ddof=1)) / np.sqrt(len(losses)) if len(losses) > 1 else mean
    return stated(mean, (max(0.0, mean - half), mean + half), "normal")


def stated(value: float, interval: Interval, method: str) -> dict[str, Any]:
    return {"value": float(value), "interval": [float(limit) for limit in interval], "method": method}
