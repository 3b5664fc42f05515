"""One small real Dataset for all tests of training."""

from __future__ import annotations

import pytest

from components.artifacts import Artifact
from tests.builders import build_dataset


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """300 digits: 240 to train on, 30 to validate, 30 to test."""
    return build_dataset(tmp_path_factory.mktemp("digits"), rows=300)
