from __future__ import annotations

import pytest
import torch

from components.errors import StageError
from components.train import loop
from components.train.loop import train
from components.train.out_of_memory import is_out_of_memory
from tests.components.train.jobs import FakeWorker, make_job

VIT = {"architecture": "vit", "patch_size": 2, "hidden_size": 256, "num_hidden_layers": 8, "dropout": 0.0}


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def exhaust(monkeypatch, error):
    def fail(*given):
        raise error

    monkeypatch.setattr(loop, "batch_loss", fail)


def test_a_cpus_own_error_is_known():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60)
    assert is_out_of_memory(caught.value)
    assert not is_out_of_memory(RuntimeError("size mismatch"))


def test_it_is_answered_with_what_would_fit(digits, tmp_path, monkeypatch):
    exhaust(monkeypatch, torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"))
    with pytest.raises(
        StageError, match=r"ran out of memory on cpu \(at most .* in use\); it needs about .*; set train\."
    ) as caught:
        train(make_job(digits, tmp_path, VIT, global_batch_size=128), FakeWorker())
    message = caught.value.message
    assert "train.gradient_accumulation_steps to" in message or "train.activation_checkpointing to true" in message
    assert "train.zero.stage" not in message  # it is 0 already


def test_where_nothing_helps_it_says_so(digits, tmp_path, monkeypatch):
    exhaust(monkeypatch, MemoryError())
    with pytest.raises(StageError, match="no other way needs clearly less"):
        train(make_job(digits, tmp_path, global_batch_size=1), FakeWorker())


def test_another_error_stays_what_it_is(digits, tmp_path, monkeypatch):
    exhaust(monkeypatch, RuntimeError("size mismatch"))
    with pytest.raises(RuntimeError, match="size mismatch"):
        train(make_job(digits, tmp_path), FakeWorker())
