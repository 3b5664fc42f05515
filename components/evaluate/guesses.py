"""What a model that writes texts must beat to be worth its cost: three guesses that learn next to nothing.

    copy                    the source itself
    most frequent target    of the training rows
    nearest source          the target of the training row whose source is most alike (TF-IDF of words)

The best of them on the validation rows, by exact match and then ROUGE-L, is measured on the test rows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from components.evaluate.rouge import rouge_scores
from components.evaluate.written import is_exact

if TYPE_CHECKING:
    import numpy as np

    from components.artifacts.dataset import Split

MAX_ROWS = 50_000
"""Training rows that are searched for the nearest, drawn at random."""
VALIDATION_ROWS = 1000
BATCH_ROWS = 256

Guess = Callable[[Sequence[str]], list[str]]


def best_guess(train: Split, validation: Split, seed: int) -> tuple[str, Guess]:
    """The best of the three on (at most VALIDATION_ROWS of) the validation rows, and its name."""
    sources, targets = (validation.column(role)[:VALIDATION_ROWS] for role in ("source", "target"))
    guesses = make_guesses(train, seed)

    def merit(name: str) -> tuple[int, float]:
        pairs = list(zip(guesses[name](sources), targets, strict=True))
        return sum(is_exact(*pair) for pair in pairs), sum(rouge_scores(*pair)[2] for pair in pairs)

    best = max(guesses, key=merit)
    return best, guesses[best]


def make_guesses(train: Split, seed: int) -> dict[str, Guess]:
    """All three, by name."""
    import numpy as np

    rows = np.arange(len(train))
    if len(train) > MAX_ROWS:
        rows = np.sort(np.random.default_rng(seed).choice(len(train), MAX_ROWS, replace=False))
    sources, targets = (train.table.column(role).take(rows).to_pylist() for role in ("source", "target"))
    common = min(Counter(targets).items(), key=lambda item: (-item[1], item[0]))[0]
    return {
        "copy": list,
        "most frequent target": lambda texts: [common] * len(texts),
        "nearest source": lambda texts: [targets[row] for row in nearest_rows(sources, texts)],
    }


def nearest_rows(known: Sequence[str], texts: Sequence[str]) -> np.ndarray:
    """Of each text the row of `known` most like it; the first of several, and of none that shares a word."""
    import numpy as np
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer(token_pattern=r"(?u)\S+", sublinear_tf=True, dtype=np.float32)
    vectors = vectorizer.fit_transform(known).T.tocsr()
    asked = vectorizer.transform(texts)
    parts = range(0, len(texts), BATCH_ROWS)
    found = [(asked[start : start + BATCH_ROWS] @ vectors).toarray().argmax(axis=1) for start in parts]
    return np.concatenate(found)
