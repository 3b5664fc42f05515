"""Row A18: what was changed between a kill and the same command is told, refused, or accepted and recorded."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from components.artifacts import Artifact
from components.context import read_lines
from components.errors import CheckpointError, SpecError
from components.train import session
from components.train.config import TrainConfig
from components.train.job import TrainJob
from components.train.loop import train
from pipelines import identity
from pipelines.cli import main
from pipelines.run import RunOptions, prepare
from pipelines.run_folder import RunFolder
from pipelines.spec import load_spec
from tests.builders import build_dataset, write_digits
from tests.command import SMALL
from tests.components.train.jobs import FakeWorker, Stopped, make_job

pytestmark = [pytest.mark.faults, pytest.mark.usefixtures("one_thread")]


@pytest.fixture
def stopped(digits: Artifact, tmp_path: Path) -> TrainJob:
    """A training that was stopped after its second of four epochs."""
    job = make_job(digits, tmp_path / "work")
    with pytest.raises(Stopped):
        train(job, FakeWorker(stop_at=2))
    return job


def with_train(job: TrainJob, **values: Any) -> TrainJob:
    return replace(job, train=TrainConfig.model_validate({**job.train.model_dump(), **values}))


def test_A18_a_checkpoint_of_other_settings_or_data_is_refused_with_the_difference(
    stopped: TrainJob, tmp_path: Path
) -> None:
    (tmp_path / "other").mkdir()
    other = build_dataset(tmp_path / "other", rows=280).path
    changed = {
        "train.learning_rate (0.001 -> 0.002)": with_train(stopped, learning_rate=2e-3),
        "train.epochs (4 -> 6)": with_train(stopped, epochs=6),
        "seed (0 -> 1)": replace(stopped, seed=1),
        "dataset (": replace(stopped, dataset=other),
    }
    for difference, job in changed.items():
        with pytest.raises(CheckpointError) as refused:
            train(job, FakeWorker())
        assert difference in refused.value.message and "--accept-changes" in refused.value.message
    assert train(stopped, FakeWorker()).facts["resumed_from_step"] == 16  # nothing was set aside


def test_A18_an_accepted_change_stands_in_the_result(stopped: TrainJob) -> None:
    longer, worker = replace(with_train(stopped, epochs=6), accept_changes=True), FakeWorker()
    result = train(longer, worker)
    assert result.facts["resumed_from_step"] == 16
    assert result.facts["accepted_changes"] == ["train.epochs (4 -> 6)"]
    assert [entry["epoch"] for entry in result.history] == [1, 2, 3, 4, 5, 6]
    assert any("although changed: train.epochs (4 -> 6)" in text for text in worker.warnings)


def test_A18_another_network_is_refused_whatever_the_flag(stopped: TrainJob) -> None:
    wider = replace(stopped, model=stopped.model.model_copy(update={"hidden_sizes": (32,)}), accept_changes=True)
    with pytest.raises(CheckpointError, match=r"model\.hidden_sizes.*its state does not fit"):
        train(wider, FakeWorker())


def test_A18_control_without_the_guard_a_change_goes_unnoticed(
    stopped: TrainJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "job_digest", lambda job: "the same for all")
    one = replace(stopped, work_folder=stopped.work_folder / "one", key_file=stopped.work_folder / "one" / "key")
    with pytest.raises(Stopped):
        train(one, FakeWorker(stop_at=2))
    result = train(with_train(one, learning_rate=2e-3), FakeWorker())
    assert (result.facts["resumed_from_step"], result.facts["accepted_changes"]) == (16, [])


@pytest.fixture
def fresh_identity() -> Iterator[Callable[[], None]]:
    """Lets the digests of the code be computed anew."""

    def clear() -> None:
        identity.code_facts.cache_clear()
        identity.code_digest.cache_clear()

    yield clear
    clear()


class Runs:
    """Runs of one spec in a home of their own; nothing is executed."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.home = folder, folder / "home"
        self.source = write_digits(folder / "digits.parquet", 200)
        self.values: dict[str, Any] = {**SMALL, "data": {**SMALL["data"], "source": str(self.source)}}

    def prepare(self, **options: Any) -> RunFolder:
        return prepare(load_spec(self.values), RunOptions(**options), self.home)


@pytest.mark.parametrize("what", ["config", "data", "library", "code"])
def test_A18_a_run_that_changed_is_refused_with_the_difference_or_accepted_and_recorded(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fresh_identity: Callable[[], None]
) -> None:
    runs = Runs(tmp_path)
    first = runs.prepare()
    before = first.facts()
    if what == "config":
        runs.values = {**runs.values, "train": {**runs.values["train"], "learning_rate": 5e-3}}
        difference = "train.learning_rate (0.003 -> 0.005)"
    elif what == "data":
        write_digits(runs.source, 190)
        difference = "the content of data.source ("
    elif what == "library":
        real = identity._version
        monkeypatch.setattr(identity, "_version", lambda name: "0.0.1" if name == "torch" else real(name))
        difference = f"torch ('{real('torch')}' -> '0.0.1')"
    else:
        package = tmp_path / "root" / "components"
        package.mkdir(parents=True)
        (package / "new.py").write_text("")
        monkeypatch.setattr(identity, "ROOT", tmp_path / "root")
        difference = "components/"
    fresh_identity()

    with pytest.raises(SpecError) as refused:
        runs.prepare(resume=first.run_id)
    assert difference in refused.value.message and "--accept-changes" in refused.value.message
    assert first.facts() == before

    second = runs.prepare()  # the same command starts a new run, and says so
    assert second.run_id != first.run_id
    (told,) = [event["text"] for event in read_lines(second.events_path)]
    assert difference in told and f"--resume {first.run_id} --accept-changes" in told

    again = runs.prepare(resume=first.run_id, accept_changes=True)
    after = again.facts()
    assert again.run_id == first.run_id
    assert after.code == before.code  # what is done, and checkpoints, count
    assert len(after.accepted) == 1 and difference in "; ".join(after.accepted[0]["changes"])
    assert any(difference in event["text"] for event in read_lines(again.events_path))
    assert runs.prepare(resume=first.run_id).facts() == after  # accepted once and for all


def test_A18_control_torch_goes_on_with_other_settings_and_says_nothing(tmp_path: Path) -> None:
    """torch's own checkpoint holds no trace of what wrote it."""
    import torch

    model = torch.nn.Linear(4, 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "peer.pt")
    state = torch.load(tmp_path / "peer.pt", weights_only=True)
    assert state.keys() == {"model", "optimizer"}
    changed = torch.optim.AdamW(model.parameters(), lr=2e-3)
    changed.load_state_dict(state["optimizer"])
    assert changed.param_groups[0]["lr"] == 1e-3  # the new setting is dropped, without a word


def test_A18_the_command_refuses_and_accepts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PENSTOCK_HOME", str(tmp_path / "home"))
    runs = Runs(tmp_path)
    spec = tmp_path / "spec.yaml"
    spec.write_text(json.dumps(runs.values))
    arguments = ["run", str(spec), "--until", "data", "--debug", "--offline", "--json"]
    assert main(arguments) == 0
    run_id = json.loads(capsys.readouterr().out)["run_id"]
    changed = [*arguments, "--set", "data.split.seed=7", "--resume", run_id]
    assert main(changed) == 2
    assert "data.split.seed (0 -> 7)" in json.loads(capsys.readouterr().out)["error"]["message"]
    assert main([*arguments, "--accept-changes"]) == 2
    capsys.readouterr()
    assert main([*changed, "--accept-changes"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["run_id"], result["accepted_changes"]) == (run_id, ["data.split.seed (0 -> 7)"])
