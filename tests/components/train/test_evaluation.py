import pytest

from components.train.evaluation import BATCH_SIZE, BATCH_TOKENS, divide_rows, largest_batch


@pytest.mark.parametrize(
    ("rows", "label_tokens", "workers", "found"),
    [
        (1, 1, 1, (1, 1)),
        (BATCH_SIZE, 1, 1, (1, BATCH_SIZE)),
        (BATCH_SIZE + 1, 1, 1, (2, BATCH_SIZE // 2 + 1)),  # even, not one full batch and one row
        (62, 256, 1, (2, 31)),
        (62, 256, 2, (1, 31)),
        (3, BATCH_TOKENS * 2, 1, (3, 1)),
    ],
)
def test_rows_are_divided_evenly(rows, label_tokens, workers, found):
    assert divide_rows(rows, label_tokens, workers) == found
    assert found[1] <= largest_batch(label_tokens)
