"""Names of models: they become registry entries, routes, applications and file names."""

from __future__ import annotations

import re

from components.errors import SpecError

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}")


def checked_name(name: str, field: str = "register.name") -> str:
    """Returns `name` if it is safe wherever a model's name goes.

    Raises:
        SpecError: If it is not letters, digits, - and _, beginning with a letter or digit, at most 63 characters.
    """
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise SpecError(
            f"{str(name)[:40]!r} is no model name; allowed are letters, digits, - and _, at most 63 characters.", field
        )
    return name
