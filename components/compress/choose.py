"""Which candidate goes to the gate. Pure: values in, a value out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

SIZE_BAND = 1.02
"""Sizes within 2 % of the smallest count as equal: the better metric decides between them."""
LATENCY_BAND = 1.05
"""Latencies within 5 % of the fastest count as equal: that is what measuring twice differs by."""


@dataclass(frozen=True)
class Candidate:
    """One compressed form of the model, as measured on this machine.

    Attributes:
        method: float32, int8-dynamic, int8-static or prune-N.
        size_bytes: Graph and preprocessing needed to serve, uncompressed.
        latency_ms: p50 and p99 of batch 1 on one thread, preprocessing left out.
        metrics: {"validation": {...}}.
        drop: Loss of the deciding validation metric against the trained model; negative is a gain.
        accepted: Whether it may be chosen.
        speedup: Against ONNX float32, by p50.
        size_ratio: Trained model's size over this one's.
        error: Why it cannot be used; None if it can.
    """

    method: str
    size_bytes: int | None = None
    latency_ms: Mapping[str, float] | None = None
    metrics: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    drop: float | None = None
    accepted: bool = False
    speedup: float | None = None
    size_ratio: float | None = None
    error: str | None = None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def metric_drop(reference: float, candidate: float, mode: Literal["max", "min"]) -> float:
    """How much worse the candidate is, in the units of the metric."""
    return reference - candidate if mode == "max" else candidate - reference


def choose(candidates: Sequence[Candidate], prefer: Literal["latency", "size"]) -> Candidate | None:
    """The smallest or fastest accepted candidate; among equals the one that loses least, then the first named.

    Returns:
        None if no candidate is accepted.
    """
    accepted = [candidate for candidate in candidates if candidate.accepted]
    if not accepted:
        return None
    band = SIZE_BAND if prefer == "size" else LATENCY_BAND
    limit = band * min(_cost(candidate, prefer) for candidate in accepted)
    return min((candidate for candidate in accepted if _cost(candidate, prefer) <= limit), key=_drop)


def best_rejected(candidates: Sequence[Candidate]) -> Candidate | None:
    """The candidate that loses least, for the record of a refusal; None if all of them failed."""
    usable = [candidate for candidate in candidates if candidate.error is None]
    return min(usable, key=_drop) if usable else None


def _cost(candidate: Candidate, prefer: Literal["latency", "size"]) -> float:
    assert candidate.size_bytes is not None and candidate.latency_ms is not None
    return candidate.size_bytes if prefer == "size" else candidate.latency_ms["p50"]


def _drop(candidate: Candidate) -> float:
    assert candidate.drop is not None
    return candidate.drop
