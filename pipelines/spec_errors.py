"""Turns what pydantic found into sentences: what was given, what is allowed, what to do, and the line."""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from components.errors import PenstockError, SpecError
from components.models.config import ARCHITECTURES, LATER_ARCHITECTURES
from pipelines.yaml_source import Source

LATER_SECTIONS = ("fuse", "monitor", "report")

WANTED = {
    "int": "a whole number", "float": "a number", "bool": "true or false", "string": "text", "list": "a list",
    "tuple": "a list", "dict": "a mapping", "model": "a mapping of fields", "model_attributes": "a mapping of fields",
    "finite_number": "a finite number",
}  # fmt: skip


class SpecErrors(SpecError):
    """Everything that is wrong with a spec, at once."""

    def __init__(self, errors: Sequence[PenstockError]) -> None:
        first = errors[0]
        super().__init__("\n".join(sentence(error) for error in errors), first.field, first.line, first.hint)
        self.errors = list(errors)

    def __reduce__(self) -> tuple:
        return type(self), (self.errors,)

    def as_dict(self) -> dict:
        first = self.errors[0]
        return {**first.as_dict(), "errors": [error.as_dict() for error in self.errors]}


def sentence(error: PenstockError) -> str:
    """One error as a line for people."""
    return f"line {error.line}: {error.message}" if error.line else error.message


def not_available(parsed: Source) -> list[PenstockError]:
    """Sections and architectures that the design names and this version lacks; takes them out of `parsed`."""
    errors: list[PenstockError] = []
    for name in LATER_SECTIONS:
        if name in parsed.values:
            del parsed.values[name]
            errors.append(
                SpecError(f"{name} is not available in this version; remove it.", name, parsed.lines.get(name))
            )
    model = parsed.values.get("model")
    if isinstance(model, dict) and model.get("architecture") in LATER_ARCHITECTURES:
        field = "model.architecture"
        message = (
            f"{field} {model['architecture']} is not available in this version; allowed: {', '.join(ARCHITECTURES)}."
        )
        errors.append(SpecError(message, field, parsed.lines.get(field)))
        parsed.values["model"] = {"architecture": "mlp"}
    return errors


def explain(error: ValidationError, parsed: Source, root: type[BaseModel]) -> list[PenstockError]:
    """One SpecError for each thing pydantic found."""
    return [_explain_one(dict(item), parsed, root) for item in error.errors(include_url=False)]


def _explain_one(item: dict[str, Any], parsed: Source, root: type[BaseModel]) -> PenstockError:
    parts = [part for part in item["loc"] if part not in ARCHITECTURES]
    field = ".".join(str(part) for part in parts)
    line = _line_of(parts, parsed)
    return SpecError(_message(item, parts, field, root, parsed), field or None, line)


def _message(item: dict[str, Any], parts: list[Any], field: str, root: type[BaseModel], parsed: Source) -> str:
    kind, given, context = item["type"], item.get("input"), item.get("ctx", {})
    if kind == "extra_forbidden":
        return unknown_field(field, parts[-1], allowed_fields(root, parts[:-1], parsed.values))
    if kind == "missing":
        return f"{field} is missing; every spec needs it."
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        tag = given.get("architecture") if isinstance(given, dict) else None
        return f"{field}.architecture is {tag!r}; allowed: {', '.join(ARCHITECTURES)}."
    if kind == "literal_error":
        return f"{field} is {given!r}; allowed: {context['expected']}."
    if kind in ("value_error", "assertion_error"):
        return f"{field}: {context.get('error', item['msg'])}." if field else f"{context.get('error', item['msg'])}."
    if kind.removesuffix("_type").removesuffix("_parsing").removesuffix("_from_float") in WANTED:
        wanted = WANTED[kind.removesuffix("_type").removesuffix("_parsing").removesuffix("_from_float")]
        return f"{field} is {given!r}, which is not {wanted}; write {wanted}."
    return f"{field} is {given!r}; {item['msg'][0].lower()}{item['msg'][1:]}."


def unknown_field(field: str, name: str, allowed: Sequence[str]) -> str:
    """The sentence for a key that does not exist."""
    close = difflib.get_close_matches(str(name), allowed, n=1)
    guess = f" did you mean {close[0]}?" if close else ""
    return f"{field} is no field of the spec;{guess} allowed here: {', '.join(allowed)}."


def allowed_fields(root: type[BaseModel], parts: Sequence[Any], values: Any) -> list[str]:
    """Names that may stand in the section at `parts`."""
    section: Any = root
    for part in parts:
        values = values.get(part) if isinstance(values, dict) else None
        field = getattr(section, "model_fields", {}).get(part) or _by_alias(section, part)
        if field is None:
            return []
        section = _section_class(field.annotation, values)
    fields = getattr(section, "model_fields", {})
    return [info.alias or name for name, info in fields.items()]


def _by_alias(section: Any, name: Any) -> Any:
    return next((info for info in getattr(section, "model_fields", {}).values() if info.alias == name), None)


def _section_class(annotation: Any, values: Any) -> Any:
    """The config class that an annotation stands for; in a union the one whose architecture was given."""
    if typing.get_origin(annotation) not in (typing.Union, types.UnionType):
        return annotation
    options = [option for option in typing.get_args(annotation) if option is not type(None)]
    wanted = values.get("architecture") if isinstance(values, dict) else None
    for option in options:
        tag = getattr(option, "model_fields", {}).get("architecture")
        if tag is not None and wanted in typing.get_args(tag.annotation):
            return option
    return options[0]


def _line_of(parts: Sequence[Any], parsed: Source) -> int | None:
    """The line of the field, or of the nearest section around it that stands in the file."""
    for length in range(len(parts), 0, -1):
        line = parsed.lines.get(".".join(str(part) for part in parts[:length]))
        if line is not None:
            return line
    return None
