"""The two ways to apply a batch function to all units: on Ray Data, or in this process. Same functions, same order."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from components.context import Context
from components.data.batches import Item
from components.errors import PenstockError
from components.ray_connection import connect_ray

if TYPE_CHECKING:
    import pyarrow as pa

Work = Callable[[Item], Iterator["pa.Table"]]
Driver = Callable[[Sequence[Item], Work], Iterator["pa.Table"]]

SMALL_BYTES = 1 << 20
"""Up to here starting Ray Data's workers takes far longer than the work itself."""
MAX_BLOCKS = 256
"""Ray tasks at most; units are shared out among them."""


def choose_driver(context: Context, size_bytes: int) -> Driver:
    """Ray Data on the cluster of RAY_ADDRESS; in this process with --debug, without a cluster, or for a small source.

    Args:
        context: Says whether this is a debug run.
        size_bytes: Of all files of the source.
    """
    connected = bool(os.environ.get("RAY_ADDRESS")) or ray_is_connected()
    return run_on_ray if connected and not context.debug and size_bytes > SMALL_BYTES else run_here


def ray_is_connected() -> bool:
    import sys

    return "ray" in sys.modules and sys.modules["ray"].is_initialized()


def run_here(items: Sequence[Item], work: Work) -> Iterator[pa.Table]:
    """One unit after the other, batch by batch."""
    for item in items:
        yield from work(item)


def run_on_ray(items: Sequence[Item], work: Work) -> Iterator[pa.Table]:
    """Units in parallel as a Ray Data stream with backpressure; batches come back in the order of the units."""
    import ray

    connect_ray()
    configure_ray_data()
    dataset = ray.data.from_items(list(items), override_num_blocks=min(len(items), MAX_BLOCKS))
    mapped = dataset.map_batches(apply_work, batch_size=1, batch_format="pyarrow", fn_kwargs={"work": work})
    try:
        # None: blocks as the tasks made them, without copying rows together.
        yield from mapped.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=1)
    except Exception as error:  # Ray wraps what a task raised; our own errors are for the user as they are.
        cause = own_cause(error)
        if cause is None:
            raise
        raise cause from error


def apply_work(batch: pa.Table, work: Work) -> Iterator[pa.Table]:
    """Runs in a Ray task."""
    for item in batch.to_pylist():
        yield from work(item)


def own_cause(error: BaseException | None) -> PenstockError | None:
    """The first error of ours in the chain of causes."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, PenstockError):
            return error
        error = getattr(error, "cause", None) or error.__cause__ or error.__context__
    return None


def configure_ray_data() -> None:
    """Order as given, no bars, no chatter: stages report by events alone."""
    import ray.data

    settings = ray.data.DataContext.get_current()
    settings.enable_progress_bars = False
    settings.enable_operator_progress_bars = False
    settings.print_on_execution_start = False
    settings.execution_options.preserve_order = True
    for name in ("ray.data", "ray.data._internal.execution.streaming_executor"):
        logging.getLogger(name).setLevel(logging.ERROR)
