"""What all tasks over texts share: what a sample is, and which text of a request can be used."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from components.errors import RequestError
from components.tasks.base import Task, check_inputs

if TYPE_CHECKING:
    import numpy as np


class TextSamples(Task):
    """The samples are texts, measured in characters."""

    modality = "text"
    feature = "text"
    measures: ClassVar[tuple[str, ...]] = ("characters",)

    def check_sample(self, value: Any) -> str | None:
        if not isinstance(value, str):
            return f"it is a {type(value).__name__}, not a text"
        return surrogate_problem(value)

    def describe(self, value: Any) -> dict[str, int]:
        return {"characters": len(value)}


def pad_sequences(sequences: Sequence[Sequence[int]], padding: int) -> tuple[np.ndarray, np.ndarray]:
    """Token ids of a batch, filled up with `padding` to the longest, and the mask of the real ones.

    Returns:
        Two arrays of int64, shape (B, T).
    """
    import numpy as np

    lengths = np.array([len(sequence) for sequence in sequences])
    mask = np.arange(lengths.max())[None, :] < lengths[:, None]
    tokens = np.full(mask.shape, padding, dtype=np.int64)
    tokens[mask] = np.concatenate([np.asarray(sequence) for sequence in sequences])
    return tokens, mask.astype(np.int64)


def parse_texts(inputs: Sequence[Any]) -> list[str]:
    """The texts of a request.

    Raises:
        RequestError: Naming the first that cannot be used.
    """
    check_inputs(inputs)
    return [parse_text(value, index) for index, value in enumerate(inputs)]


def parse_text(value: Any, index: int) -> str:
    """One text of a request; bytes are taken as UTF-8."""
    where = f"inputs[{index}]"
    if isinstance(value, bytes):
        try:
            value = value.decode()
        except UnicodeDecodeError as error:
            raise RequestError(f"{where} is not UTF-8 text.", field=where) from error
    if not isinstance(value, str):
        raise RequestError(f"{where} is a {type(value).__name__}; give a text.", field=where)
    if not value.strip():
        raise RequestError(f"{where} is an empty text; give at least one word.", field=where)
    problem = surrogate_problem(value)
    if problem is not None:
        raise RequestError(f"{where} cannot be used: {problem}.", field=where)
    return value


def surrogate_problem(text: str) -> str | None:
    """Why a str is no text that UTF-8 can hold: JSON's \\ud800 makes half a character."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return "it holds half a surrogate pair"
    return None
