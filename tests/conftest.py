"""What all tests share: the product's own environment, a home that is nobody's, and one Ray for those that need it."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

# Settings of whoever runs the tests must not decide their outcome.
FOREIGN = ("RAY_ADDRESS", "MLFLOW_TRACKING_URI", "PENSTOCK_API_KEYS_FILE")


@pytest.fixture(scope="session", autouse=True)
def product_environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What the command line gives its stages (the built DeepSpeed ops and their ninja); no network, nobody's home."""
    from pipelines.ray_cluster import compute_environment

    with pytest.MonkeyPatch.context() as patch:
        for name in FOREIGN:
            patch.delenv(name, raising=False)
        for name, value in compute_environment().items():
            patch.setenv(name, value)
        patch.setenv("HF_HUB_OFFLINE", "1")
        # Ray reads it once, when it is imported: also where that is before `ray_session` is asked for.
        patch.setenv("RAY_AUTH_MODE", "token")
        patch.setenv("PENSTOCK_HOME", str(tmp_path_factory.mktemp("home")))
        yield


@pytest.fixture(scope="session")
def ray_session(product_environment: None) -> Iterator[str]:
    """One local Ray for all tests, exported as `RAY_ADDRESS`; it leads a session of its own and is ended by its id."""
    from pipelines.ray_cluster import client_environment, ensure_ray, lease, stop_ray

    # Short, because Ray's unix sockets lie below it and their paths have at most 107 bytes.
    home = Path(tempfile.mkdtemp(prefix="penstock-"))
    with pytest.MonkeyPatch.context() as patch, lease(home):
        cluster = ensure_ray(home)
        for name, value in client_environment(home).items():
            patch.setenv(name, value)
        patch.setenv("RAY_ADDRESS", cluster.address)
        try:
            yield cluster.address
        finally:
            disconnect()
            stop_ray(home)
    shutil.rmtree(home)


def disconnect() -> None:
    """Leaves Ray if a test connected to it: a driver whose Ray is ended under it waits for it."""
    ray = sys.modules.get("ray")
    if ray is not None and ray.is_initialized():
        ray.shutdown()


@pytest.fixture
def penstock_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A `PENSTOCK_HOME` of the test's own."""
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("PENSTOCK_HOME", str(home))
    return home


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data sets that `PENSTOCK_DATA` names; the test is skipped without one."""
    folder = os.environ.get("PENSTOCK_DATA")
    if not folder:
        pytest.skip("PENSTOCK_DATA names no folder with the real data sets")
    return Path(folder)
