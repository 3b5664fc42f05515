import pytest

from components.context import read_lines
from components.errors import CheckpointError, StageError
from components.train.device import Placement
from components.train.failures import first_failure
from components.train.launch import ContextWorker, launch, missing_resources
from tests.builders import make_context
from tests.components.train.jobs import make_job

CPU = Placement("cpu", "gloo", "fp32", 1, 2, 0)
GPU = Placement("cuda:0", "nccl", "bf16", 4, 4, 1)


@pytest.mark.parametrize(
    ("available", "placement", "workers", "lacking"),
    [
        ({"CPU": 4}, CPU, 2, None),
        ({"CPU": 3}, CPU, 2, "4 CPU wanted, 3 there"),
        ({"CPU": 8, "GPU": 2}, GPU, 2, None),
        ({"CPU": 8}, GPU, 2, "2 GPU wanted, 0 there"),
    ],
)
def test_missing_resources_are_counted(available, placement, workers, lacking):
    assert missing_resources(available, placement, workers) == lacking


class Wrapped(Exception):
    def __init__(self, cause):
        super().__init__("a long\ntraceback")
        self.cause = cause


def test_our_own_error_is_the_cause_of_the_others_broken_connections():
    group = {0: RuntimeError("Connection closed by peer"), 1: Wrapped(CheckpointError("No whole checkpoint."))}
    error = first_failure(group)
    assert isinstance(error, CheckpointError) and error.message == "No whole checkpoint."


def test_a_foreign_error_becomes_one_sentence():
    error = first_failure({0: Wrapped(ValueError("first line.\nsecond"))})
    assert isinstance(error, StageError)
    assert error.message == "Training failed in a worker: ValueError: first line."


def test_one_worker_trains_here_and_reports_to_the_context(digits, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    context = make_context(tmp_path, "train", debug=False)
    result = launch(make_job(digits, tmp_path / "work"), context)
    events, journal = (read_lines(context.run_folder / name) for name in ("events.jsonl", "tracking.jsonl"))
    assert [event["step"] for event in events if event["kind"] == "metric"] == [1, 2, 3, 4]
    assert next(event for event in events if event["kind"] == "progress")["total"] == 32
    assert [line["step"] for line in journal if "loss" in line["metrics"]] == [1, 2, 3, 4]
    assert journal[-2]["metrics"]["loss"] == result.history[-1]["loss"]
    assert {"samples_per_s", "data_wait"} <= set(journal[-1]["metrics"])


def test_only_rank_0_reports(tmp_path):
    context = make_context(tmp_path)
    ContextWorker(context, rank=1, world_size=2).report(1, {"loss": 1.0})
    assert read_lines(context.run_folder / "tracking.jsonl") == []


def test_two_workers_train_as_a_ray_group(ray_session, digits, tmp_path):
    context = make_context(tmp_path, "train", debug=False)
    network = {"GLOO_SOCKET_IFNAME": "lo"}
    job = make_job(digits, tmp_path / "work", workers=2, zero={"stage": 2}, epochs=2, environment=network)
    result = launch(job, context)
    assert (result.facts["workers"], result.facts["engine"]) == (2, "deepspeed")
    events = read_lines(context.run_folder / "events.jsonl")
    assert [event["step"] for event in events if event["kind"] == "metric"] == [1, 2]
    with pytest.raises(StageError, match=r"train\.workers is 64, but the Ray cluster is too small"):
        launch(make_job(digits, tmp_path / "many", workers=64, global_batch_size=64), context)
