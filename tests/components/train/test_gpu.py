"""What only a GPU can show: the same jobs on CUDA, in bf16, sharded and resumed. `make test-gpu`."""

from __future__ import annotations

import pytest

from components.train.loop import train
from tests.components.train.jobs import FakeWorker, Stopped, make_job

pytestmark = pytest.mark.gpu

VIT = {"architecture": "vit", "patch_size": 4, "hidden_size": 32, "num_hidden_layers": 2, "dropout": 0.0}


@pytest.fixture(autouse=True)
def gpu() -> None:
    import torch

    if not torch.cuda.is_available():
        pytest.skip("torch sees no GPU here")


@pytest.mark.parametrize("stage", [0, 2, 3])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_training_learns_on_a_gpu(stage, precision, digits, tmp_path):
    values = {"epochs": 20, "learning_rate": 3e-3, "precision": precision, "zero": {"stage": stage}}
    result = train(make_job(digits, tmp_path, VIT, **values), FakeWorker())
    assert result.facts["device"].startswith("cuda")
    assert result.metrics["accuracy"] > 0.6
    assert result.facts["peak_memory_bytes"] > 0


@pytest.mark.parametrize("stage", [0, 2])
def test_a_stopped_training_goes_on_from_its_checkpoint(stage, digits, tmp_path):
    job = make_job(digits, tmp_path, VIT, zero={"stage": stage})
    with pytest.raises(Stopped):
        train(job, FakeWorker(stop_at=2))
    assert train(job, FakeWorker()).facts["resumed_from_step"] == 16
