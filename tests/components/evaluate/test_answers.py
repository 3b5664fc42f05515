from __future__ import annotations

import numpy as np
import pytest

from components.evaluate.answers import to_answers
from components.evaluate.metrics import NO_CLASS


def test_classes_in_another_order_are_brought_together():
    log_probabilities = np.log([[0.7, 0.3], [0.2, 0.8]])
    answers = to_answers(log_probabilities, ("dog", "cat"), ("cat", "dog"), np.array([1, 1]))
    assert answers.predicted.tolist() == [1, 0]
    assert answers.scores == pytest.approx([0.7, 0.8])
    assert answers.loss == pytest.approx(-np.log([0.7, 0.2]))


def test_label_the_dataset_lacks_becomes_no_class_and_a_missing_one_leaves_no_loss():
    answers = to_answers(np.log([[0.9, 0.1]]), ("fox", "cat"), ("cat", "dog"), np.array([0]))
    assert answers.predicted.tolist() == [NO_CLASS]
    assert answers.loss is None
