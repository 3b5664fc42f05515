"""Large libraries without the parts that nothing here needs: seconds for each worker that starts."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager


@contextmanager
def hidden(*names: str) -> Iterator[None]:
    """Makes `import NAME` fail and its module not be found, unless it was imported before."""
    with ExitStack() as stack:
        for name in names:
            if name not in sys.modules:
                sys.modules[name] = None  # type: ignore[assignment]
                stack.callback(sys.modules.pop, name)
        yield


@contextmanager
def without_collection() -> Iterator[None]:
    """Pauses the search for cycles: a tenth of the time in which libraries make objects by the hundred thousand."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def prepare_transformers() -> None:
    """Lets `transformers` make networks without accelerate and scipy, which it would import with the first one.

    It asks whether they are there once in a process, and remembers. They serve its own trainer and object detection.
    """
    with hidden("accelerate", "scipy"):
        from transformers.utils import is_accelerate_available, is_scipy_available

        is_accelerate_available()
        is_scipy_available()
