"""Metrics of texts that a model wrote, against their references, each with its interval.

Exact match has Wilson's interval. BLEU, ROUGE, loss and perplexity are bootstrapped over the test examples; where the
bootstrap cannot move (all right, or all wrong) they take Wilson's interval of a share as large: of all values between 0
and 1 with one mean, those of a share lie furthest apart, so it is too wide rather than too narrow.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from components.evaluate.intervals import wilson
from components.evaluate.metrics import stated
from components.evaluate.rouge import ROUGE_NAMES, rouge_scores

if TYPE_CHECKING:
    import numpy as np

BLEU_ORDER = 4


@dataclass(frozen=True)
class Options:
    """How intervals are made.

    Attributes:
        confidence: Of each.
        resamples: Test sets drawn with replacement from the test examples.
        seed: Of the draws.
    """

    confidence: float
    resamples: int
    seed: int


def measure_texts(texts: Sequence[str], references: Sequence[str], options: Options) -> dict[str, Any]:
    """Exact match, BLEU (0 to 100) and ROUGE (F1, 0 to 1) of n >= 1 texts.

    Returns:
        {"n", metric: {"value", "interval", "method"}, "bleu_signature": how sacrebleu counted}.
    """
    import numpy as np
    from sacrebleu.metrics.bleu import BLEU

    n = len(texts)
    exact = sum(is_exact(text, reference) for text, reference in zip(texts, references, strict=True))
    result: dict[str, Any] = {"n": n, "exact_match": stated(exact / n, wilson(exact, n, options.confidence), "wilson")}
    result["bleu"] = bootstrapped(bleu_counts(texts, references), corpus_bleu, options, scale=100.0)
    scores = np.array([rouge_scores(text, reference) for text, reference in zip(texts, references, strict=True)])
    for column, name in enumerate(ROUGE_NAMES):
        result[name] = bootstrapped(scores[:, [column]], lambda sums: float(sums[0]) / n, options, scale=1.0)
    corpus = BLEU()
    corpus.corpus_score(texts[:1], [references[:1]])  # only then it knows how many references there are
    result["bleu_signature"] = str(corpus.get_signature())
    return result


def is_exact(text: str, reference: str) -> bool:
    """Whether both are the same but for white space around them."""
    return text.strip() == reference.strip()


def bleu_counts(texts: Sequence[str], references: Sequence[str]) -> np.ndarray:
    """What BLEU adds up over a corpus, int64, shape (n, 2 * BLEU_ORDER + 2): matching n-grams and all n-grams of each
    order, words of the text, words of the reference."""
    import numpy as np
    from sacrebleu.metrics.bleu import BLEU

    # Short sentences lack 4-grams; that changes a sentence's score, which is not used, and not its counts.
    single = BLEU(effective_order=True)
    found = (single.sentence_score(text, [reference]) for text, reference in zip(texts, references, strict=True))
    return np.array([[*score.counts, *score.totals, score.sys_len, score.ref_len] for score in found], np.int64)


def corpus_bleu(sums: np.ndarray) -> float:
    """BLEU of a corpus from its summed `bleu_counts`, as sacrebleu's default gives it."""
    from sacrebleu.metrics.bleu import BLEU

    whole = [int(value) for value in sums]
    matches, totals, (given, wanted) = whole[:BLEU_ORDER], whole[BLEU_ORDER : 2 * BLEU_ORDER], whole[-2:]
    # Its logarithms leave a perfect score a hair above 100.
    return min(100.0, BLEU.compute_bleu(matches, totals, given, wanted, smooth_method="exp").score)


def measure_losses(nats: np.ndarray, tokens: np.ndarray, options: Options) -> dict[str, Any]:
    """Loss in nats a target token and perplexity.

    Args:
        nats: Of each test example, shape (n,).
        tokens: Of its target, shape (n,).
    """
    import numpy as np

    loss = bootstrapped(np.stack([nats, tokens], axis=1), lambda sums: float(sums[0] / sums[1]), options, scale=None)
    return {"loss": loss, "perplexity": {**{key: exponential(loss[key]) for key in ("value", "interval")},
                                         "method": loss["method"]}}  # fmt: skip


def exponential(value: Any) -> Any:
    """exp of a number or of each in a list."""
    return [math.exp(each) for each in value] if isinstance(value, list) else math.exp(value)


def bootstrapped(
    values: np.ndarray, statistic: Callable[[np.ndarray], float], options: Options, scale: float | None
) -> dict[str, Any]:
    """A statistic of sums over the test examples, with its interval.

    Args:
        values: Of each example, shape (n, k).
        statistic: Of the sums, shape (k,).
        scale: Its greatest value, for a bootstrap that cannot move; None gives twice the value there, as for one loss.
    """
    import numpy as np

    value, n = statistic(values.sum(axis=0)), len(values)
    generator = np.random.default_rng(options.seed)
    samples = [statistic(values[generator.integers(n, size=n)].sum(axis=0)) for _ in range(options.resamples)]
    tail = (1 - options.confidence) / 2
    low, high = (float(limit) for limit in np.quantile(samples, [tail, 1 - tail]))
    if high - low > 1e-9 and low <= value <= high:
        return stated(value, (low, high), "bootstrap")
    if scale is None:
        return stated(value, (0.0, 2 * value), "bound")
    low, high = wilson(value / scale * n, n, options.confidence)
    return stated(value, (low * scale, high * scale), "wilson")
