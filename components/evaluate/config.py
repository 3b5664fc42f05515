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
    """Whether a simple model is fitted on the same splits and shown beside."""
    num_beams: int = Field(1, ge=1, le=64)
    """Beams with which the texts of `text2text-generation` are written; 1 takes the likeliest token each time."""
