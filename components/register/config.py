"""The `register` section of the spec."""

from __future__ import annotations

from pydantic import Field

from components.config import Config


class RegisterConfig(Config):
    """Under which name the model goes into the MLflow registry."""

    name: str | None = Field(None, pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,62}$")
    """Letters, digits, - and _; None takes the name of the spec."""
