"""components/tune/stage.py: the artifact, the events and the MLflow journal; once for real on Ray."""

from __future__ import annotations

import pytest

from components.artifacts import open_artifact, write_artifact
from components.context import read_lines
from components.errors import StageError
from components.tune.stage import StageConfig, run
from tests.components.tune.fakes import EPOCHS, SPACE, fake_train, make_context


def stage_config(**tune) -> StageConfig:
    values = {"search": "bayesian", "trials": 6, "space": SPACE, "scheduler": "asha", **tune}
    train = {"epochs": EPOCHS, "workers": 2}
    model = {"architecture": "mlp"}
    return StageConfig.model_validate({"task": "image-classification", "model": model, "train": train, "tune": values})


def empty_dataset(folder, context):
    with write_artifact(str(folder / "dataset"), "dataset", {}, context) as draft:
        draft.write_json("schema.json", {})
    return {"dataset": draft.artifact.ref}


def run_stage(folder, train=fake_train, **tune):
    context = make_context(folder)
    inputs = empty_dataset(folder, context)
    return run(stage_config(**tune), inputs, str(folder / "sweep"), context, train=train), context


def test_the_artifact_names_every_trial_and_the_winner(tmp_path):
    artifact, _ = run_stage(tmp_path)
    trials, best = artifact.read_json("trials.json"), artifact.read_json("best.json")
    assert [trial["trial"] for trial in trials] == list(range(6))
    assert [trial["chosen_by"] for trial in trials] == ["startup"] * 2 + ["model"] * 4
    assert best["metric"] == {
        "name": "accuracy",
        "value": trials[best["trial"]]["metrics"]["accuracy"],
        "split": "validation",
    }
    assert best["train"]["learning_rate"] == best["config"]["train.learning_rate"]
    assert best["train"]["workers"] == 2
    assert best["model"]["architecture"] == best["config"]["model"]["architecture"]
    assert artifact.manifest.metadata["trials"] == 6
    assert open_artifact(artifact.ref, kind="sweep").digest == artifact.digest


def test_equal_sweeps_give_equal_bytes(tmp_path):
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    assert run_stage(tmp_path / "a")[0].digest == run_stage(tmp_path / "b")[0].digest


def test_events_tell_each_trial_and_the_progress(tmp_path):
    _, context = run_stage(tmp_path)
    events = read_lines(context.run_folder / "events.jsonl")
    ends = [event for event in events if event["kind"] == "trial" and event["state"] != "running"]
    progress = [event for event in events if event["kind"] == "progress"]
    assert [event["step"] for event in ends] == [1, 2, 3, 4, 5, 6]
    assert [event["step"] for event in progress] == sorted(event["step"] for event in progress)
    assert progress[-1]["total"] == 6
    assert {"accuracy", "loss", "samples_per_s", "eta_s"} <= set(progress[-1]["metrics"])


def test_each_trial_is_an_mlflow_run_below_the_sweep(tmp_path):
    _, context = run_stage(tmp_path)
    lines = [line for line in read_lines(context.run_folder / "tracking.jsonl") if line["run"] == "tune/0"]
    metrics = [line for line in lines if line["kind"] == "metrics"]
    assert "model.architecture" in lines[0]["params"]
    assert [line["step"] for line in metrics] == list(range(1, EPOCHS + 1))
    assert lines[-1]["kind"] == "status" and lines[-1]["status"] == "FINISHED"


def test_a_second_start_runs_nothing_again(tmp_path):
    first, context = run_stage(tmp_path)
    ledger = (context.work_folder / "ledger.txt").read_text()
    assert run_stage(tmp_path)[0].digest == first.digest
    assert (context.work_folder / "ledger.txt").read_text() == ledger


def test_all_trials_failing_is_an_error_with_the_first_reason_and_can_be_tried_again(tmp_path):
    def broken(job, worker):
        raise RuntimeError(f"bad trial {job.work_folder.name}")

    with pytest.raises(StageError, match="All 6 trials failed; the first with: RuntimeError: bad trial 000"):
        run_stage(tmp_path, broken)
    assert not (tmp_path / "sweep").exists()
    assert run_stage(tmp_path)[0].read_json("best.json")


def test_content_holds_neither_times_nor_retries(tmp_path):
    def failing_once(job, worker):
        marker = job.work_folder / "failed"
        if job.work_folder.name == "001" and not marker.exists():
            marker.touch()
            raise RuntimeError("disturbed")
        return fake_train(job, worker)

    (tmp_path / "quiet").mkdir(), (tmp_path / "disturbed").mkdir()
    artifact, _ = run_stage(tmp_path / "quiet")
    disturbed, _ = run_stage(tmp_path / "disturbed", failing_once)
    assert not artifact.manifest.files["course.json"].content
    assert disturbed.read_json("course.json")[1]["failures"] == 1
    assert disturbed.digest == artifact.digest
