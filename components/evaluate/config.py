"""The `evaluate` section of the spec."""

from __future__ import annotations

from pydantic import Field

from components.config import Config


class EvaluateConfig(Config):
    """How metrics on the test split are stated."""

    confidence: float = Field(0.95, gt=0.5, lt=1)
    """Confidence of the intervals beside each metric."""
    resamples: int = Field(1000, ge=100)
    """Bootstrap resamples for metrics that have no closed interval."""
    baseline: bool = True
    """Whether a linear model is trained on the same splits and shown beside."""
