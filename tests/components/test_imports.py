from __future__ import annotations

import gc
import subprocess
import sys

import pytest

from components.imports import without_collection

MAKES_A_NETWORK = """
import sys
from components.models.build import build_model, parse_model_config
sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
build_model(parse_model_config({"architecture": "gpt", **sizes}), {"vocab_size": 16, "max_length": 8}, 0)
assert "transformers" in sys.modules
assert not {"accelerate", "scipy", "sklearn", "mlflow", "kfp"} & set(sys.modules)
import accelerate, scipy.optimize
"""


def test_a_network_is_made_without_libraries_that_it_does_not_need_and_they_can_still_be_imported() -> None:
    done = subprocess.run([sys.executable, "-c", MAKES_A_NETWORK], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_search_for_cycles_goes_on_as_it_was() -> None:
    with pytest.raises(ValueError), without_collection():
        assert not gc.isenabled()
        raise ValueError
    assert gc.isenabled()
    gc.disable()
    try:
        with without_collection():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
