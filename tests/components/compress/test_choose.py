from __future__ import annotations

import pytest

from components.compress.choose import Candidate, best_rejected, choose, metric_drop


def candidate(method: str, size_bytes: int = 100, p50: float = 1.0, drop: float = 0.0, **more) -> Candidate:
    values = {"accepted": True, **more}
    return Candidate(method, size_bytes, {"p50": p50, "p99": 2 * p50}, drop=drop, **values)


def test_smallest_or_fastest_is_chosen():
    small, fast = candidate("int8-dynamic", 100, 2.0), candidate("int8-static", 200, 1.0)
    assert choose([fast, small], "size") is small
    assert choose([small, fast], "latency") is fast


def test_among_nearly_equal_sizes_the_most_accurate_is_chosen():
    pruned, dynamic = candidate("prune-50", 100, drop=0.009), candidate("int8-dynamic", 101, drop=0.001)
    assert choose([pruned, dynamic], "size") is dynamic


def test_rejected_and_failed_candidates_are_never_chosen():
    bad = candidate("int8-static", 10, drop=0.5, accepted=False)
    failed = Candidate("prune-50", error="RuntimeError: no")
    assert choose([bad, failed], "size") is None
    assert best_rejected([failed, bad]) is bad
    assert best_rejected([failed]) is None


@pytest.mark.parametrize(("mode", "drop"), [("max", 0.1), ("min", -0.1)])
def test_drop_is_positive_where_the_candidate_is_worse(mode, drop):
    assert metric_drop(0.9, 0.8, mode) == pytest.approx(drop)
