import errno

import pytest

from components.context import read_lines
from components.errors import CheckpointError, DiskFullError, StageError
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
    assert missing_resources([available], placement, workers) == lacking


def test_a_worker_needs_its_room_on_one_machine():
    machines = [{"CPU": 3.0}, {"CPU": 3.0}]
    assert missing_resources(machines, CPU, 2) is None
    assert missing_resources([{"CPU": 3.0}, {"CPU": 1.0}], CPU, 2) == (
        "2 CPU wanted for each on one machine, room for 1 there"
    )


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


def test_a_full_disk_is_told_as_one_whatever_else_broke():
    full = OSError(errno.ENOSPC, "No space left on device", "/data/step-00000100")
    error = first_failure({0: RuntimeError("Connection closed by peer"), 1: Wrapped(full)})
    assert isinstance(error, DiskFullError) and "/data/step-00000100" in error.message


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


def test_debugging_a_training_of_several_workers_leaves_its_checkpoints_alone(digits, tmp_path):
    context, job = make_context(tmp_path, "train"), make_job(digits, tmp_path / "work", workers=2)
    theirs = job.work_folder / "checkpoints" / "step-00000009"
    theirs.mkdir(parents=True)
    (theirs / "manifest.json").write_text("written by two workers")
    result = launch(job, context)
    assert result.weights.is_relative_to(job.work_folder / "debug") and result.facts["workers"] == 1
    assert (theirs / "manifest.json").read_text() == "written by two workers"


def test_only_rank_0_reports(tmp_path):
    context = make_context(tmp_path)
    ContextWorker(context, rank=1, world_size=2).report(1, {"loss": 1.0})
    assert read_lines(context.run_folder / "tracking.jsonl") == []


def test_two_workers_train_as_a_ray_group(ray_session, digits, tmp_path):
    import ray
    from ray._private.state import actors

    context = make_context(tmp_path, "train", debug=False)
    network = {"GLOO_SOCKET_IFNAME": "lo"}
    job = make_job(digits, tmp_path / "work", workers=2, zero={"stage": 2}, epochs=2, environment=network)
    before = set(actors()) if ray.is_initialized() else set()
    result = launch(job, context)
    assert (result.facts["workers"], result.facts["engine"]) == (2, "deepspeed")
    # Each process beside the workers costs seconds of start-up on a small machine; the coordinator is one a cluster.
    started = [actor["ActorClassName"] for name, actor in actors().items() if name not in before]
    assert started.count("RayTrainWorker") == 2
    assert set(started) <= {"RayTrainWorker", "_AutoscalingCoordinatorActor"}
    events = read_lines(context.run_folder / "events.jsonl")
    assert [event["step"] for event in events if event["kind"] == "metric"] == [1, 2]
    with pytest.raises(StageError, match=r"train\.workers is 64, but the Ray cluster is too small"):
        launch(make_job(digits, tmp_path / "many", workers=64, global_batch_size=64), context)
