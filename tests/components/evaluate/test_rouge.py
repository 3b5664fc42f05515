"""ROUGE against the paper's examples, the usual package's numbers, and the textbook table."""

import random

import pytest

from components.evaluate.rouge import longest_common_subsequence, rouge_scores


def by_table(first, second):
    table = [[0] * (len(second) + 1) for _ in range(len(first) + 1)]
    for i, a in enumerate(first):
        for j, b in enumerate(second):
            table[i + 1][j + 1] = table[i][j] + 1 if a == b else max(table[i][j + 1], table[i + 1][j])
    return table[-1][-1]


def test_the_longest_common_subsequence_is_that_of_the_table():
    generator = random.Random(0)
    for _ in range(200):
        first, second = (generator.choices("abcd", k=generator.randrange(12)) for _ in range(2))
        assert longest_common_subsequence(first, second) == by_table(first, second)


def test_the_paper_s_example():
    """Lin 2004, section 3.1: S2 and S3 share as many words with S1, and S2 more of them in order."""
    reference = "police killed the gunman"
    assert rouge_scores("police kill the gunman", reference)[2] == pytest.approx(3 / 4)
    assert rouge_scores("the gunman kill police", reference)[2] == pytest.approx(2 / 4)


@pytest.mark.parametrize(
    ("text", "reference", "expected"),
    [  # rouge-score 0.1.2 without stemming
        ("the cat sat on the mat", "the cat is on the mat", (5 / 6, 3 / 5, 5 / 6)),
        ("The Cat, the CAT!", "the cat", (2 / 3, 1 / 2, 2 / 3)),
        ("", "words", (0.0, 0.0, 0.0)),
        ("one", "one", (1.0, 0.0, 1.0)),
    ],
)
def test_scores_are_those_of_the_usual_package(text, reference, expected):
    assert rouge_scores(text, reference) == pytest.approx(expected)


def test_letters_of_any_script_count():
    assert rouge_scores("Größe zählt", "größe zählt") == (1.0, 1.0, 1.0)
    assert rouge_scores("новый год", "год") == pytest.approx((2 / 3, 0.0, 2 / 3))
