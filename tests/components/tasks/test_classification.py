"""Metrics against scikit-learn, loss against its closed form."""

import numpy as np
import pytest

from components.errors import RequestError
from components.tasks.base import check_inputs
from components.tasks.classification import classification_metrics, log_softmax


def test_metrics_agree_with_scikit_learn() -> None:
    from sklearn.metrics import accuracy_score, log_loss, precision_recall_fscore_support

    generator = np.random.default_rng(0)
    labels = generator.integers(0, 4, 200)
    logits = generator.normal(size=(200, 4)) + 2 * np.eye(4)[labels]
    predicted = logits.argmax(1)
    precision, recall, f1, _ = precision_recall_fscore_support(labels, predicted, average="macro")
    expected = {
        "accuracy": accuracy_score(labels, predicted),
        "precision": precision,
        "recall": recall,
        "f1": f1,
        "loss": log_loss(labels, np.exp(log_softmax(logits))),
    }
    assert classification_metrics(logits, labels) == pytest.approx(expected)


def test_a_class_never_predicted_scores_zero_and_huge_logits_stay_finite() -> None:
    metrics = classification_metrics(np.array([[1e4, 0.0], [1e4, 0.0]]), np.array([0, 1]))
    assert metrics["recall"] == 0.5
    assert metrics["precision"] == 0.25
    assert metrics["loss"] == pytest.approx(5000)


def test_metrics_are_plain_floats_and_empty_without_rows() -> None:
    metrics = classification_metrics(np.zeros((3, 2), np.float32), np.zeros(3, np.int32))
    assert all(type(value) is float for value in metrics.values())
    assert classification_metrics(np.zeros((0, 2)), np.zeros(0)) == {}


@pytest.mark.parametrize("inputs", [[], "text", b"bytes", 3, None])
def test_inputs_that_are_no_list_are_refused(inputs: object) -> None:
    with pytest.raises(RequestError, match="inputs"):
        check_inputs(inputs)  # type: ignore[arg-type]
