"""ROUGE-1, ROUGE-2 and ROUGE-L: how many words, word pairs, and words in order a text shares with its reference.

Written here because the package `rouge-score` has had no release since 2022, needs nltk, and drops every letter beyond
a to z. On English both give the same numbers (no stemming).

Source: Lin 2004, https://aclanthology.org/W04-1013
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

WORD = re.compile(r"[^\W_]+")
ROUGE_NAMES = ("rouge1", "rouge2", "rougeL")


def rouge_scores(text: str, reference: str) -> tuple[float, float, float]:
    """F1 of ROUGE-1, ROUGE-2 and ROUGE-L, each from 0 to 1; case and punctuation do not count."""
    given, wanted = (WORD.findall(each.lower()) for each in (text, reference))
    common = longest_common_subsequence(given, wanted)
    return ngram_f1(given, wanted, 1), ngram_f1(given, wanted, 2), f1(common, len(given), len(wanted))


def ngram_f1(given: Sequence[str], wanted: Sequence[str], n: int) -> float:
    """F1 of the n-grams that both have, each as often as in the one that has it less often."""
    first, second = (Counter(zip(*(words[i:] for i in range(n)), strict=False)) for words in (given, wanted))
    return f1((first & second).total(), first.total(), second.total())


def f1(common: int, given: int, wanted: int) -> float:
    """Harmonic mean of precision common / given and recall common / wanted; 0 where nothing is common."""
    return 2 * common / (given + wanted) if common else 0.0


def longest_common_subsequence(first: Sequence[str], second: Sequence[str]) -> int:
    """Its length, row by row of the usual table with a bit for each word of `first`.

    Source: Hyyrö 2004, "Bit-parallel LCS-length computation revisited"
    """
    places: dict[str, int] = {}
    for index, word in enumerate(first):
        places[word] = places.get(word, 0) | 1 << index
    everything = (1 << len(first)) - 1
    row = everything
    for word in second:
        matches = row & places.get(word, 0)
        row = ((row + matches) | (row - matches)) & everything
    return len(first) - row.bit_count()
