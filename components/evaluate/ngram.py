"""The n-gram model beside the neural one: counts of short token sequences, interpolated with absolute discounting.

    p(w | c) = max(count(c w) - D, 0) / count(c)  +  D * kinds(c) / count(c) * p(w | c without its first token)

Source: Ney, Essen and Kneser 1994. The order is chosen on the validation tokens, as the network's settings are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

DISCOUNT = 0.75
MAX_ORDER = 6
MAX_TOKENS = 4_000_000
"""Training tokens at most, the last ones: counts beyond take memory and change little."""
KEY_LIMIT = 1 << 62


@dataclass(frozen=True)
class Counts:
    """Sequences of one length, as sorted numbers in base `vocab_size`, with how often each occurs.

    Attributes:
        contexts: The sequences without their last token, sorted, each once.
        totals: Occurrences of each context.
        kinds: Distinct tokens that follow each context.
    """

    keys: np.ndarray
    counts: np.ndarray
    contexts: np.ndarray
    totals: np.ndarray
    kinds: np.ndarray


class NgramModel:
    """Counts of the training tokens.

    Args:
        tokens: Shape (n,).
        vocab_size: Number of different tokens.
    """

    def __init__(self, tokens: np.ndarray, vocab_size: int) -> None:
        import numpy as np

        self.vocab_size = vocab_size
        training = np.asarray(tokens[-MAX_TOKENS:], np.int64)
        self.unigram = (np.bincount(training, minlength=vocab_size) + 1) / (len(training) + vocab_size)
        self.orders: list[Counts] = []
        while len(self.orders) + 2 <= MAX_ORDER and vocab_size ** (len(self.orders) + 2) < KEY_LIMIT:
            self.orders.append(count_sequences(training, len(self.orders) + 2, vocab_size))
        self.order = 1

    def choose_order(self, tokens: np.ndarray) -> NgramModel:
        """Sets the order that is best on held-out tokens."""
        losses = [float(values.mean()) for values in self.losses_by_order(tokens)]
        self.order = losses.index(min(losses)) + 1
        return self

    def losses(self, tokens: np.ndarray) -> np.ndarray:
        """Nats of each token given those before it, shape (n,)."""
        return self.losses_by_order(tokens)[self.order - 1]

    def losses_by_order(self, tokens: np.ndarray) -> list[np.ndarray]:
        """The same for the orders 1, 2, ..."""
        import numpy as np

        values = np.asarray(tokens, np.int64)
        probability = self.unigram[values]
        found = [-np.log(probability)]
        for length, counts in enumerate(self.orders, start=2):
            # The first tokens have too little before them: they keep the shorter context's probability.
            if len(values) >= length:
                keys = sequence_keys(values, length, self.vocab_size)
                probability = probability.copy()
                probability[length - 1 :] = interpolate(counts, keys, self.vocab_size, probability[length - 1 :])
            found.append(-np.log(probability))
        return found


def sequence_keys(tokens: np.ndarray, length: int, vocab_size: int) -> np.ndarray:
    """Each run of `length` tokens as one number, int64, shape (n - length + 1,)."""
    import numpy as np

    keys = np.zeros(len(tokens) - length + 1, np.int64)
    for place in range(length):
        keys = keys * vocab_size + tokens[place : len(tokens) - length + 1 + place]
    return keys


def count_sequences(tokens: np.ndarray, length: int, vocab_size: int) -> Counts:
    import numpy as np

    if len(tokens) < length:
        empty = np.empty(0, np.int64)
        return Counts(empty, empty, empty, empty, empty)
    keys, counts = np.unique(sequence_keys(tokens, length, vocab_size), return_counts=True)
    contexts, first = np.unique(keys // vocab_size, return_index=True)
    return Counts(keys, counts, contexts, np.add.reduceat(counts, first), np.diff(np.append(first, len(keys))))


def interpolate(counts: Counts, keys: np.ndarray, vocab_size: int, shorter: np.ndarray) -> np.ndarray:
    """Probabilities under the longer context; where it was never seen, those under the shorter one."""
    import numpy as np

    if not len(counts.keys):
        return shorter
    place = np.minimum(np.searchsorted(counts.contexts, keys // vocab_size), len(counts.contexts) - 1)
    known = counts.contexts[place] == keys // vocab_size
    spot = np.minimum(np.searchsorted(counts.keys, keys), len(counts.keys) - 1)
    occurred = np.where(counts.keys[spot] == keys, counts.counts[spot], 0)
    totals, kinds = counts.totals[place], counts.kinds[place]
    mixed = np.maximum(occurred - DISCOUNT, 0) / totals + DISCOUNT * kinds / totals * shorter
    return np.where(known, mixed, shorter)
