"""What image and text classification share: the loss, the metrics and how an answer looks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from components.tasks.base import Preprocessing, RawRows, Task

if TYPE_CHECKING:
    import numpy as np
    import torch

    from components.models.predictor import Predictor


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Log probabilities in float64, shape (B, classes)."""
    import numpy as np

    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def confusion_matrix(predicted: np.ndarray, labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Counts, int64, shape (classes, classes): rows are the true classes, columns the predicted ones."""
    import numpy as np

    return np.bincount(labels * num_classes + predicted, minlength=num_classes**2).reshape(num_classes, num_classes)


def per_class_scores(confusion: np.ndarray) -> dict[str, np.ndarray]:
    """Precision, recall and F1 of each class; 0 where a class was never predicted or never occurs."""
    import numpy as np

    hits, predicted, actual = np.diag(confusion).astype(float), confusion.sum(axis=0), confusion.sum(axis=1)
    return {
        "precision": hits / np.maximum(predicted, 1),
        "recall": hits / np.maximum(actual, 1),
        "f1": 2 * hits / np.maximum(predicted + actual, 1),
    }


def classification_metrics(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Accuracy, macro precision, recall and F1 over the classes that occur or are predicted, and the mean loss.

    Args:
        logits: Shape (rows, classes).
        labels: Class indices, shape (rows,).

    Returns:
        Plain floats; `loss` is the cross-entropy in nats a sample. No row gives an empty dict.
    """
    import numpy as np

    labels = np.asarray(labels, dtype=np.int64)
    if not len(labels):
        return {}
    confusion = confusion_matrix(logits.argmax(axis=1), labels, logits.shape[1])
    seen = (confusion.sum(axis=0) + confusion.sum(axis=1)) > 0
    macro = {name: float(values[seen].mean()) for name, values in per_class_scores(confusion).items()}
    loss = -log_softmax(logits)[np.arange(len(labels)), labels].mean()
    return {"accuracy": float(np.trace(confusion) / len(labels)), **macro, "loss": float(loss)}


class ClassPreprocessing(Preprocessing):
    """A preprocessing whose answers are classes."""

    def predictions(self, logits: np.ndarray) -> list[dict[str, Any]]:
        """What a client is told for each row of `logits` (B, classes): {"label", "score"}."""
        import numpy as np

        scores = np.exp(log_softmax(np.asarray(logits)))
        best = scores.argmax(axis=1)
        return [
            {"label": self.classes[index], "score": float(row[index])} for index, row in zip(best, scores, strict=True)
        ]


class Classification(Task):
    """One class a sample; accuracy decides."""

    deciding_metric: ClassVar[str] = "accuracy"
    mode: ClassVar[Literal["max", "min"]] = "max"
    reported: ClassVar[tuple[str, ...]] = ("precision", "recall", "f1")

    def loss(self, logits: torch.Tensor, labels: torch.Tensor, label_smoothing: float) -> torch.Tensor:
        import torch

        return torch.nn.functional.cross_entropy(logits, labels, label_smoothing=label_smoothing)

    def metrics(self, outputs: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        return classification_metrics(outputs, labels)

    def answer(self, predictor: Predictor, rows: RawRows, options: Mapping[str, Any]) -> list[dict[str, Any]]:
        preprocessing = predictor.preprocessing
        assert isinstance(preprocessing, ClassPreprocessing)
        return preprocessing.predictions(predictor.logits(preprocessing.collate(preprocessing.encode(rows))))
