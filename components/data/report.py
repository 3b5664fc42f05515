"""The data report: what came in, what was dropped and why, and what the splits look like."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from components.artifacts.dataset import SPLITS
from components.data.clean import Cleaned
from components.data.index import summarise
from components.tasks import Preprocessing

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa


def count_rows(parts: np.ndarray) -> dict[str, int]:
    """Rows of each split."""
    return {name: int((parts == part).sum()) for part, name in enumerate(SPLITS)}


def count_classes(parts: np.ndarray, cleaned: Cleaned) -> dict[str, dict[str, int]]:
    """Rows by split and class."""
    import numpy as np

    def counts(part: int) -> dict[str, int]:
        found = np.bincount(cleaned.labels[parts == part], minlength=len(cleaned.classes))
        return {name: int(count) for name, count in zip(cleaned.classes, found, strict=True)}

    return {name: counts(part) for part, name in enumerate(SPLITS)}


def report_classes(parts: np.ndarray, cleaned: Cleaned) -> dict[str, Any]:
    """How many rows each class has, and how unequal they are."""
    import numpy as np

    counts = np.bincount(cleaned.labels, minlength=len(cleaned.classes))
    return {
        "classes": count_classes(parts, cleaned),
        "balance": {
            "shares": {name: float(n / counts.sum()) for name, n in zip(cleaned.classes, counts, strict=True)},
            "largest_to_smallest": float(counts.max() / counts.min()),
        },
    }


def make_report(
    index: pa.Table,
    measures: Sequence[str],
    cleaned: Cleaned,
    parts: np.ndarray,
    preprocessing: Preprocessing,
    source: dict[str, Any],
) -> dict[str, Any]:
    """The content of `report.json`.

    Args:
        index: The whole index.
        measures: Columns of the index whose distribution is reported.
        cleaned: What is kept and dropped.
        parts: Part of each kept row.
        preprocessing: As fitted.
        source: Facts about the source: uri, kind, files, digest.
    """
    kept = index.take(cleaned.kept)
    return {
        "source": source,
        "rows": {"read": index.num_rows, "kept": len(cleaned.kept), **count_rows(parts)},
        **(report_classes(parts, cleaned) if cleaned.classes else {}),
        "measures": {name: summarise(kept.column(name)) for name in measures},
        "dropped": {
            **cleaned.dropped,
            "corrupt_rows": cleaned.corrupt,
            "conflicting_rows": cleaned.conflicts,
            "rare_classes": cleaned.rare,
        },
        "preprocessing": preprocessing.model_inputs(),
    }
