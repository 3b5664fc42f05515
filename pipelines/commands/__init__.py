"""One module a command, each with `command(options) -> exit code`."""

from __future__ import annotations

from collections.abc import Sequence

from components.errors import SpecError


def parse_overrides(items: Sequence[str]) -> dict[str, str]:
    """`["train.epochs=5"]` -> `{"train.epochs": "5"}`.

    Raises:
        SpecError: If an item is no KEY=VALUE.
    """
    overrides = {}
    for item in items:
        key, equals, value = item.partition("=")
        if not equals or not all(part.isidentifier() for part in key.split(".")):
            raise SpecError(f"--set {item!r} is not KEY=VALUE; write for example --set train.epochs=5.")
        overrides[key] = value
    return overrides
