"""The `compress` section of the spec."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field, field_validator

from components.config import Config

PRUNE = re.compile(r"prune-([1-9][0-9]?)")


class AcceptConfig(Config):
    """What a compressed model may cost. The gate on the test split uses the same numbers."""

    max_drop: float = Field(0.01, gt=0, lt=1)
    """Largest loss of the deciding metric against the trained model."""
    confidence: float = Field(0.95, gt=0.5, lt=1)
    """Confidence of the one-sided test for non-inferiority."""


class CompressConfig(Config):
    """How the trained model is made smaller and faster."""

    candidates: tuple[str, ...] = ("int8-dynamic", "int8-static", "prune-50")
    """float32 | int8-dynamic | int8-static | prune-N (N percent of the weights set to zero, then int8-dynamic)."""
    accept: AcceptConfig = AcceptConfig()
    prefer: Literal["latency", "size"] = "size"
    """What the candidates within tolerance are ranked by."""
    calibration_samples: int = Field(256, ge=8)
    """Training samples that int8-static measures activations on."""

    @field_validator("candidates")
    @classmethod
    def _known(cls, candidates: tuple[str, ...]) -> tuple[str, ...]:
        if not candidates:
            raise ValueError("candidates is empty; name at least one, or set `compress: false`")
        for name in candidates:
            if name == "distil":
                raise ValueError(
                    "distil is not available in this version; allowed: float32, int8-dynamic, int8-static, prune-N"
                )
            if name not in ("float32", "int8-dynamic", "int8-static") and not PRUNE.fullmatch(name):
                raise ValueError(
                    f"{name!r} is no candidate; allowed: float32, int8-dynamic, int8-static, prune-N (1 to 99)"
                )
        return candidates
