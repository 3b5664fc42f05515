"""Each of the three guesses is chosen where it is the best."""

import pytest

from components.artifacts.dataset import open_split
from components.evaluate.guesses import best_guess, nearest_rows
from tests.builders import build_dataset


@pytest.mark.parametrize(
    ("kind", "target"),
    [
        ("copy", lambda number: f"word {number} of many"),
        ("most frequent target", lambda number: "same" if number % 10 else f"other {number}"),
        ("nearest source", lambda number: f"group {number % 4}"),
    ],
)
def test_the_best_guess_on_validation_is_taken(tmp_path, kind, target):
    lines = [f"word {n} of many{' group' * (kind[0] == 'n')}{n % 4 if kind[0] == 'n' else ''},{target(n)}"
             for n in range(60)]  # fmt: skip
    (tmp_path / "a.csv").write_text("\n".join(["source,target", *lines]))
    dataset = build_dataset(tmp_path, str(tmp_path / "a.csv"), task="text2text-generation", text={"vocab_size": 300})
    chosen, guess = best_guess(open_split(dataset.path, "train"), open_split(dataset.path, "validation"), seed=0)
    assert chosen == kind
    assert len(guess(["word 3 of many", "word 4 of many"])) == 2


def test_the_nearest_row_shares_the_rarest_words():
    known = ["the cat", "the dog", "a bird"]
    assert nearest_rows(known, ["one dog", "bird", "the cat sat", "nothing"]).tolist() == [1, 2, 0, 0]
