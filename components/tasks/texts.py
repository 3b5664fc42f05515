"""What all tasks over texts share: what a sample is, and which text of a request can be used."""

from __future__ import annotations

from typing import Any, ClassVar

from components.errors import RequestError
from components.tasks.base import Task


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
