"""How a stage joins the Ray that the run was given."""

from __future__ import annotations

import logging
import os
import threading

from components.errors import UnavailableError

joining = threading.Event()
"""Set while this process tries to join a cluster; one that dies meanwhile is waited for a minute, and then takes this
process with it without a word."""


def connect_ray(log_to_driver: bool = False) -> None:
    """Joins the cluster of RAY_ADDRESS, unless this process already has.

    Args:
        log_to_driver: Whether what workers print comes to this process.

    Raises:
        UnavailableError: If there is none, or it does not answer.
    """
    import ray

    if ray.is_initialized():
        return
    address = os.environ.get("RAY_ADDRESS", "auto")
    joining.set()
    try:
        ray.init(address=address, log_to_driver=log_to_driver, logging_level=logging.ERROR, namespace="penstock")
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise UnavailableError(f"No Ray cluster answers at RAY_ADDRESS={address} ({error}).") from error
    finally:
        joining.clear()
