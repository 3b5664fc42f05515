"""Generated code trains as the written one does, keeps the names of the weights, and survives a stop."""

from __future__ import annotations

import pytest
from pydantic import ValidationError
from safetensors.torch import load_file

from components.train import compiling
from components.train.compiling import compiler_error
from components.train.config import TrainConfig
from components.train.loop import train
from tests.components.train.jobs import FakeWorker, Stopped, make_job


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    # The graphs are made as ever, but not turned into C++, which takes half a minute: tests/faults does that once.
    monkeypatch.setattr(compiling, "BACKEND", "aot_eager")


@pytest.mark.parametrize("stage", [0, 2])
def test_compiled_code_trains_alike_and_resumes_bit_for_bit(stage, digits, tmp_path):
    values = {"epochs": 3, "zero": {"stage": stage}}
    model = {"architecture": "mlp", "hidden_sizes": [16], "dropout": 0.0}
    written = train(make_job(digits, tmp_path / "written", model, **values), FakeWorker())
    whole = train(make_job(digits, tmp_path / "whole", model, compile=True, **values), FakeWorker())
    assert whole.metrics["loss"] == pytest.approx(written.metrics["loss"], rel=1e-3)
    assert set(load_file(whole.weights)) == set(load_file(written.weights))
    job = make_job(digits, tmp_path / "stopped", model, compile=True, **values)
    with pytest.raises(Stopped):
        train(job, FakeWorker(stop_at=1))
    assert train(job, FakeWorker()).weights.read_bytes() == whole.weights.read_bytes()


def test_the_module_is_really_compiled(digits, tmp_path, monkeypatch):
    import torch

    compiled = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **options: compiled.append(options))
    train(make_job(digits, tmp_path, epochs=1, compile=True), FakeWorker())
    assert compiled == [{"backend": "aot_eager", "dynamic": None}]


def test_sharded_weights_cannot_be_compiled():
    with pytest.raises(ValidationError, match=r"compile needs whole weights.*zero.stage to 2"):
        TrainConfig.model_validate({"compile": True, "zero": {"stage": 3}})


def test_a_missing_compiler_is_named(monkeypatch):
    monkeypatch.setattr(compiling.shutil, "which", lambda name: None)
    error = compiler_error(on_gpu=False)
    assert error.field == "train.compile" and "C++ compiler" in error.message
