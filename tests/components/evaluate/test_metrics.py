from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import precision_recall_fscore_support

from components.evaluate.metrics import NO_CLASS, Answers, measure

CLASSES = ("cat", "dog", "owl")
OPTIONS = (0.95, 500, 0)


def answers(predicted: np.ndarray) -> Answers:
    return Answers(predicted, np.full(len(predicted), 0.9), np.full(len(predicted), 0.1))


def test_values_match_scikit_learn():
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 3, 200)
    predicted = np.where(generator.random(200) < 0.8, labels, generator.integers(0, 3, 200))
    result = measure(answers(predicted), labels, CLASSES, OPTIONS)
    by_class = precision_recall_fscore_support(labels, predicted)
    macro = precision_recall_fscore_support(labels, predicted, average="macro")
    for index, name in enumerate(("precision", "recall", "f1")):
        assert [result["per_class"][label][name]["value"] for label in CLASSES] == pytest.approx(by_class[index])
        assert result[name]["value"] == pytest.approx(macro[index])
        assert result[name]["method"] == "bootstrap"
    assert result["accuracy"]["value"] == pytest.approx((labels == predicted).mean())
    assert np.sum(result["confusion_matrix"]) == result["n"] == 200


@pytest.mark.parametrize("share_right", [0.0, 1.0])
def test_extremes_have_no_point_interval(share_right):
    labels = np.arange(60) % 3
    predicted = labels if share_right else (labels + 1) % 3
    result = measure(answers(predicted), labels, CLASSES, OPTIONS)
    for name in ("accuracy", "precision", "recall", "f1"):
        low, high = result[name]["interval"]
        assert low <= result[name]["value"] == share_right <= high
        assert high - low > 0.02


def test_label_unknown_to_the_dataset_is_wrong():
    result = measure(answers(np.array([0, NO_CLASS, 1, 2])), np.array([0, 0, 1, 2]), CLASSES, OPTIONS)
    assert result["accuracy"]["value"] == 0.75
    assert result["confusion_matrix"] == [[1, 0, 0], [0, 1, 0], [0, 0, 1]]
    assert result["per_class"]["cat"]["recall"]["value"] == 0.5


def test_single_example_has_a_loss_interval():
    result = measure(answers(np.array([0])), np.array([0]), CLASSES, OPTIONS)
    low, high = result["loss"]["interval"]
    assert low < result["loss"]["value"] < high
