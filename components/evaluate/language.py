"""Language models on the test tokens: loss, perplexity and bits a byte with intervals, and an n-gram model beside them.

A window is as long as the model's context; windows do not overlap. Intervals are over windows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from components.artifacts.dataset import open_tokens
from components.context import Context
from components.errors import StageError

if TYPE_CHECKING:
    import numpy as np

    from components.artifacts import Artifact
    from components.models.predictor import Predictor

BATCH_TOKENS = 4096
KIND = "n-gram"


@dataclass(frozen=True)
class WindowLosses:
    """What a model made of each window.

    Attributes:
        losses: Mean nats a token, shape (windows,).
        right: Share of tokens guessed right, shape (windows,); None for a model that gives only probabilities.
    """

    losses: np.ndarray
    right: np.ndarray | None


def window_starts(tokens: int, seq_len: int) -> np.ndarray:
    """First token of each window; the token after a window must be there too."""
    import numpy as np

    return np.arange(max(0, tokens - 1) // seq_len) * seq_len


def score_windows(predictor: Predictor, tokens: np.ndarray, seq_len: int, context: Context) -> WindowLosses:
    """Runs the network over all windows."""
    import numpy as np

    from components.tasks.classification import log_softmax

    starts, span = window_starts(len(tokens), seq_len), np.arange(seq_len + 1)
    size = max(1, BATCH_TOKENS // seq_len)
    losses, right = [], []
    for begin in range(0, len(starts), size):
        windows = np.asarray(tokens[starts[begin : begin + size, None] + span], np.int64)
        labels = windows[:, 1:]
        logits = predictor.logits({"input_ids": windows[:, :-1]})
        flat = logits.reshape(-1, logits.shape[-1])
        nats = -log_softmax(flat)[np.arange(len(flat)), labels.ravel()].reshape(labels.shape)
        losses.append(nats.mean(axis=1))
        right.append((logits.argmax(axis=-1) == labels).mean(axis=1))
        context.event("progress", min(begin + size, len(starts)), len(starts), {"loss": float(nats.mean())})
    return WindowLosses(np.concatenate(losses), np.concatenate(right))


def score_ngrams(dataset: Artifact, tokens: np.ndarray, seq_len: int) -> tuple[WindowLosses, int]:
    """The n-gram model on the same tokens, and its order. It sees the tokens before a window too."""
    from components.evaluate.ngram import NgramModel

    vocab_size = dataset.read_json("schema.json")["vocab_size"]
    model = NgramModel(open_tokens(dataset.path, "train"), vocab_size)
    model.choose_order(open_tokens(dataset.path, "validation"))
    count = len(window_starts(len(tokens), seq_len))
    nats = model.losses(tokens[: count * seq_len + 1])[1:]
    return WindowLosses(nats.reshape(count, seq_len).mean(axis=1), None), model.order


def measure_windows(scores: WindowLosses, bytes_per_token: float, confidence: float) -> dict[str, Any]:
    """Metrics with intervals: {"n": windows, "loss": {"value", "interval"}, ...}."""
    loss, low, high = mean_interval(scores.losses, confidence)
    nats_to_bits = 1 / math.log(2) / bytes_per_token
    measured: dict[str, Any] = {
        "n": len(scores.losses),
        "loss": {"value": loss, "interval": [low, high]},
        "perplexity": {"value": math.exp(loss), "interval": [math.exp(low), math.exp(high)]},
        "bits_per_byte": {"value": loss * nats_to_bits, "interval": [low * nats_to_bits, high * nats_to_bits]},
    }
    if scores.right is not None:
        accuracy, least, most = mean_interval(scores.right, confidence)
        measured["accuracy"] = {"value": accuracy, "interval": [max(0.0, least), min(1.0, most)]}
    return measured


def mean_interval(values: np.ndarray, confidence: float) -> tuple[float, float, float]:
    """The mean and its interval by Student's t."""
    from scipy import stats

    mean = float(values.mean())
    if len(values) < 2:
        raise StageError(
            "The test split holds a single window of train.seq_len tokens, too few for an interval; give more text or "
            "set data.split.test to 0.",
            field="data.split.test",
        )
    half = float(stats.t.ppf((1 + confidence) / 2, len(values) - 1) * values.std(ddof=1) / math.sqrt(len(values)))
    return mean, mean - half, mean + half


def describe(name: str, measured: Mapping[str, Any]) -> str:
    """One line for the user."""
    low, high = measured["loss"]["interval"]
    return (
        f"{name}: test loss {measured['loss']['value']:.4f} [{low:.4f}, {high:.4f}] nats a token, perplexity "
        f"{measured['perplexity']['value']:.2f}, {measured['bits_per_byte']['value']:.3f} bits a byte "
        f"(n = {measured['n']} windows)"
    )
