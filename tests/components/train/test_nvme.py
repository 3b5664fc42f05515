"""Offload to a disk: the losses are those of memory, and a checkpoint holds everything, for any number of workers."""

import shutil

import pytest

from components.errors import DiskFullError
from components.train.config import TrainConfig, ZeroConfig
from components.train.loop import train
from components.train.nvme import disk_error, file_bytes, missing_operator, open_swap, swap_folder
from components.train.preflight import check_machine
from components.train.result import read_result
from tests.components.train.jobs import FakeWorker, Stopped, make_job
from tests.components.train.plan.workloads import make_workload
from tests.components.train.ranks import train_ranks

MLP = {"architecture": "mlp", "hidden_sizes": [1024, 512], "dropout": 0.1}
"""DeepSpeed swaps only what has 1 MiB or more: of two workers' shares here the largest tensor's."""
VIT = {"architecture": "vit", "patch_size": 4, "hidden_size": 256, "num_hidden_layers": 2, "dropout": 0.0}
"""Made sharded, so its weights go to the disk while they are drawn."""
STATE = {"stage": 3, "offload_optimizer": "nvme"}
ALL = {**STATE, "offload_parameters": "nvme"}

with_operator = pytest.mark.skipif(missing_operator() is not None, reason="async_io is not built: make nvme")


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@with_operator
@pytest.mark.parametrize(("zero", "model"), [(STATE, MLP), (ALL, VIT)], ids=["optimizer", "optimizer and weights"])
def test_stopped_and_resumed_it_ends_as_in_memory(zero, model, digits, tmp_path):
    kept = train(make_job(digits, tmp_path / "memory", model, epochs=2, zero={"stage": 3}), FakeWorker())
    whole = make_job(digits, tmp_path / "whole", model, epochs=2, zero=zero)
    undisturbed = train(whole, FakeWorker())
    assert [each["loss"] for each in undisturbed.history] == pytest.approx(
        [each["loss"] for each in kept.history], rel=1e-5
    )
    assert not swap_folder(whole.train.zero, whole.work_folder).exists()
    job = make_job(digits, tmp_path / "stopped", model, epochs=2, zero=zero)
    with pytest.raises(Stopped):
        train(job, FakeWorker(stop_at=1))
    resumed = train(job, FakeWorker())
    assert resumed.facts["resumed_from_step"] == 8
    assert resumed.weights.read_bytes() == undisturbed.weights.read_bytes()


@with_operator
def test_two_workers_are_continued_by_one(digits, tmp_path):
    values = {"epochs": 2, "gradient_accumulation_steps": 2}
    model = {**MLP, "dropout": 0.0}
    memory = train(make_job(digits, tmp_path / "memory", model, **values, zero={"stage": 3}), FakeWorker())
    values |= {"workers": 2, "min_workers": 1, "zero": {**ALL, "nvme_path": str(tmp_path / "disk")}}
    job = make_job(digits, tmp_path / "pair", model, **values)
    train_ranks(job, 2, tmp_path)
    pair = read_result(job)
    assert pair is not None
    assert [each["loss"] for each in pair.history] == pytest.approx([each["loss"] for each in memory.history], rel=1e-5)
    assert list((tmp_path / "disk").iterdir()) == []
    halved = make_job(digits, tmp_path / "halved", model, **values)
    train_ranks(halved, 2, tmp_path, stop_at=1)
    worker = FakeWorker()
    alone = train(halved, worker)
    assert (alone.facts["resumed_from_step"], len(worker.warnings)) == (8, 1)
    assert alone.metrics["loss"] == pytest.approx(pair.metrics["loss"], rel=1e-4)
    assert list((tmp_path / "disk").iterdir()) == []  # what the killed workers left, too


@pytest.mark.parametrize(
    ("zero", "said"),
    [
        ({"stage": 2, "offload_optimizer": "nvme"}, "zero.stage is 2, set it to 3 or offload to cpu"),
        ({"stage": 3, "offload_parameters": "nvme"}, "set zero.offload_optimizer to nvme, too"),
        ({"stage": 3, "nvme_path": "/scratch"}, "set zero.offload_optimizer to nvme"),
        ({**STATE, "nvme_path": "scratch"}, "give an absolute path"),
    ],
)
def test_what_cannot_be_is_one_sentence(zero, said):
    with pytest.raises(ValueError, match=said):
        ZeroConfig.model_validate(zero)


def test_an_optimizer_that_is_not_swapped_is_refused():
    with pytest.raises(ValueError, match="is for adam and adamw; optimizer is momentum"):
        TrainConfig.model_validate({"zero": STATE, "optimizer": {"name": "momentum"}})


def test_a_missing_operator_is_told_before_anything_starts(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    (error,) = check_machine(TrainConfig.model_validate({"zero": STATE}))
    assert "libaio-dev" in error.message
    assert "make nvme" in error.message
    assert check_machine(TrainConfig()) == []


def test_a_disk_too_small_is_told(monkeypatch, tmp_path):
    zero = ZeroConfig.model_validate({**ALL, "nvme_path": str(tmp_path / "absent")})
    needed = file_bytes(zero, parameters=10**15, workers=2)
    assert needed == (16 + 4) * 10**15 // 2
    error = disk_error(zero, tmp_path, needed)
    assert error is not None
    assert "9313225.7 GiB, but" in error.message
    assert disk_error(zero, tmp_path, 1) is None
    free = shutil.disk_usage(tmp_path)._replace(free=1)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: free)
    monkeypatch.setattr("components.train.nvme.missing_operator", lambda: None)
    with pytest.raises(DiskFullError, match=r"set train\.zero\.nvme_path"):
        open_swap(zero, tmp_path, 0, 1, make_workload("gpt"))


def test_every_run_has_a_folder_of_its_own(tmp_path):
    zero = ZeroConfig.model_validate({**STATE, "nvme_path": str(tmp_path)})
    folders = {swap_folder(zero, tmp_path / name) for name in ("first", "second")}
    assert {folder.parent for folder in folders} == {tmp_path}
    assert len(folders) == 2
    assert swap_folder(ZeroConfig.model_validate(STATE), tmp_path) == tmp_path / "swap"
