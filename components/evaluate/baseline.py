"""The linear model beside the deep one, on the same splits: what the deep model must beat to be worth its cost.

Texts: TF-IDF of words and word pairs; images: the normalised pixels; both into logistic regression. The strength of
the regularisation is chosen on the validation rows, as the deep model's settings are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    from components.artifacts.dataset import Split
    from components.tasks.base import Preprocessing, Task

STRENGTHS = (1.0, 10.0)
"""Inverse strengths of the regularisation that are tried (scikit-learn's C)."""
MAX_ROWS = 50_000
"""Training rows at most, drawn at random: a linear model gains little from more, and memory is spared."""
MANY_TEXTS = 1000
MAX_ITERATIONS = 300
KINDS = {"text": "tf-idf (words and pairs) + logistic regression", "image": "pixels + logistic regression"}


class Baseline:
    """A fitted linear classifier over one modality.

    Attributes:
        kind: What it is, in words.
    """

    def __init__(self, task: Task, preprocessing: Preprocessing) -> None:
        self.task, self.preprocessing = task, preprocessing
        self.kind = KINDS[task.modality]

    def fit(self, train: Split, validation: Split, seed: int) -> Baseline:
        """Fits on (at most MAX_ROWS of) the training rows."""
        import numpy as np

        rows = np.arange(len(train))
        if len(train) > MAX_ROWS:
            rows = np.sort(np.random.default_rng(seed).choice(len(train), MAX_ROWS, replace=False))
        self.transform = self._fit_features(train, rows)
        features, labels = self.transform(train, rows), train.labels()[rows]
        held_out = self.transform(validation, np.arange(len(validation)))
        fitted = [fit_linear(features, labels, strength) for strength in STRENGTHS]
        self.model = max(fitted, key=lambda model: float((model.predict(held_out) == validation.labels()).mean()))
        return self

    def probabilities(self, split: Split, num_classes: int) -> np.ndarray:
        """Shape (rows, num_classes); a class without a training row has probability 0."""
        import numpy as np

        known = self.model.predict_proba(self.transform(split, np.arange(len(split))))
        result = np.zeros((len(split), num_classes))
        result[:, self.model.classes_] = known
        return result

    def _fit_features(self, train: Split, rows: np.ndarray) -> Any:
        if self.task.modality == "image":
            return self._pixels
        import numpy as np
        from sklearn.feature_extraction.text import TfidfVectorizer

        # Terms of a single text are three quarters of all and teach nothing; among few texts each one counts.
        rare = 2 if len(rows) >= MANY_TEXTS else 1
        vectorizer = TfidfVectorizer(
            ngram_range=(1, 2),
            sublinear_tf=True,
            min_df=rare,
            max_features=200_000,
            token_pattern=r"(?u)\b\w+\b",
            dtype=np.float32,
        )
        vectorizer.fit(take_texts(train, rows, self.task.feature))
        return lambda split, indices: vectorizer.transform(take_texts(split, indices, self.task.feature))

    def _pixels(self, split: Split, indices: np.ndarray) -> np.ndarray:
        import numpy as np

        parts = [
            self.preprocessing.collate(split.take(part)) for part in np.array_split(indices, len(indices) // 1024 + 1)
        ]
        return np.concatenate([part["pixel_values"].reshape(len(part["pixel_values"]), -1) for part in parts])


def fit_linear(features: Any, labels: np.ndarray, strength: float) -> Any:
    """Logistic regression over all classes at once."""
    import warnings

    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from threadpoolctl import threadpool_limits

    # The vectors are too short to share: two threads take twice the time of one, and may add up in another order.
    with warnings.catch_warnings(), threadpool_limits(limits=1):
        # A baseline a hair before its optimum predicts the same; the bound on its time matters more.
        warnings.simplefilter("ignore", ConvergenceWarning)
        return LogisticRegression(C=strength, max_iter=MAX_ITERATIONS).fit(features, labels)


def take_texts(split: Split, indices: np.ndarray, column: str) -> Sequence[str]:
    return split.table.column(column).take(indices).to_pylist()
