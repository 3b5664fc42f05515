"""The base of every config class: frozen, and an unknown key is an error."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict


class Config(BaseModel):
    """A section of the spec. Fields carry their meaning and unit in `Field(description=...)`."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


def differences(old: Any, new: Any, path: str = "") -> Iterator[str]:
    """`field (old -> new)` for each leaf that differs."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in sorted({*old, *new}):
            yield from differences(old.get(key), new.get(key), f"{path}.{key}".strip("."))
    elif old != new:
        yield f"{path} ({old!r} -> {new!r})"


def dotted_names(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values by dotted names: {"model": {"architecture": "bert"}} is {"model.architecture": "bert"}."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= dotted_names(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return flat
