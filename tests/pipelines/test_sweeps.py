"""pipelines/sweeps.py and `penstock tune`: real runs of a tiny sweep, shown, extended and learned from."""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from components.context import read_lines
from components.tracking.client import make_client
from pipelines.cli import main
from pipelines.processes import free_port
from pipelines.run_folder import RunFolder
from pipelines.spec import load_spec
from tests.mlflow_server import mlflow_server

ROOT = Path(__file__).resolve().parents[2]

SPEC: dict[str, Any] = {
    "name": "tiny",
    "task": "image-classification",
    "data": {"source": "builtin://digits"},
    "model": {"architecture": "mlp", "hidden_sizes": [16]},
    "train": {"epochs": 1, "global_batch_size": 256, "precision": "fp32"},
    "tune": {
        "search": "random",
        "trials": 2,
        "space": {"train.learning_rate": {"log_uniform": [1e-3, 1e-2]}, "model.dropout": {"choice": [0.0, 0.1]}},
    },
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("sweeps")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PENSTOCK_HOME", str(folder / "home"))
        patch.chdir(folder)
        yield folder / "home"


class Command:
    """Runs `penstock ... --json` in this process."""

    def __init__(self, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.home, self.capsys = home, capsys

    def __call__(self, *arguments: str) -> dict[str, Any]:
        self.exit_code = main([*arguments, "--json"])
        return json.loads(self.capsys.readouterr().out)

    def run(self, name: str, offline: bool = True, **tune: Any) -> dict[str, Any]:
        path = self.home.parent / f"{name}.json"
        path.with_suffix(".yaml").write_text(json.dumps({**SPEC, "tune": {**SPEC["tune"], **tune}}))
        more = ["--offline"] if offline else []
        return self("run", str(path.with_suffix(".yaml")), "--until", "tune", "--debug", *more)

    def notes(self, run_id: str) -> list[str]:
        events = read_lines(RunFolder(self.home / "runs" / run_id).events_path)
        return [event["text"] for event in events if event["kind"] == "note" and event["stage"] == "tune"]


@pytest.fixture
def penstock(home: Path, capsys: pytest.CaptureFixture[str]) -> Command:
    return Command(home, capsys)


@pytest.fixture
def first(penstock: Command) -> str:
    """The first sweep's run; made by the first test that asks, answered from the cache after that."""
    return penstock.run("first")["run_id"]


def test_show_tells_every_trial_and_the_winner(penstock, first):
    shown = penstock("tune", "show", first)
    assert shown["status"] == "done" and shown["counts"]["finished"] == 2
    assert [trial["epochs"] for trial in shown["trials"]] == [1, 1]
    assert shown["best"]["aims"]["accuracy"] == max(trial["metrics"]["accuracy"] for trial in shown["trials"])
    assert main(["tune", "show", first]) == 0
    assert "best    trial" in penstock.capsys.readouterr().out


def test_raised_trials_run_exactly_the_delta(penstock, first):
    longer = penstock.run("longer", trials=3)
    assert penstock.notes(longer["run_id"]) == [f"Goes on from the 2 trials of {first}: 1 more to run."]
    before, after = (penstock("tune", "show", run)["trials"] for run in (first, longer["run_id"]))
    assert after[:2] == before and len(after) == 3


def test_an_extended_run_tells_mlflow_the_whole_sweep(penstock, first):
    longer = penstock.run("longer", trials=3)["run_id"]
    lines = read_lines(penstock.home / "runs" / longer / "tracking.jsonl")
    ended = [line["run"] for line in lines if line["kind"] == "status"]
    assert sorted(ended) == ["tune/0", "tune/1", "tune/2"]


def test_extend_is_the_same_as_raising_the_trials(penstock, first):
    longer = penstock.run("longer", trials=3)["run_id"]
    extended = main_extend(penstock, first)
    assert extended["run_id"] == longer
    assert all(stage["cached"] for stage in extended["stages"].values())


def main_extend(penstock, run: str) -> dict[str, Any]:
    return penstock("tune", "extend", run, "--trials", "1")


def test_another_space_and_searcher_is_told_the_trials_that_lie_in_it(penstock, first):
    narrow = {"train.learning_rate": {"log_uniform": [1e-3, 1e-2]}, "model.dropout": {"choice": [0.0, 0.1, 0.2]}}
    other = penstock.run("other", search="bayesian", trials=3, space=narrow)["run_id"]
    shown = penstock("tune", "show", other)
    assert shown["observed"] >= 2
    assert shown["trials"][0]["chosen_by"] == "model"
    assert penstock.notes(other)[0].endswith("earlier trials lie in this space and are told to the search, 0 do not.")


def test_without_warm_start_nothing_is_told(penstock, first):
    alone = penstock.run("alone", search="bayesian", warm_start=False)["run_id"]
    assert penstock("tune", "show", alone)["observed"] == 0


def test_runs_of_a_live_mlflow_server_are_told_and_the_sweep_is_tracked_there(penstock, tmp_path, monkeypatch):
    with mlflow_server(tmp_path) as address:
        client = make_client(address)
        experiment = client.create_experiment("old-sweep")
        for rate, dropout, accuracy in [(0.001, 0.0, 0.7), (0.004, 0.1, 0.9), (0.009, 0.1, 0.8), (5.0, 0.1, 0.1)]:
            run = client.create_run(experiment).info.run_id
            client.log_param(run, "lr", rate)
            client.log_param(run, "model.dropout", dropout)
            client.log_metric(run, "val_acc", accuracy)
            client.set_terminated(run)
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        past = {"experiment": "old-sweep", "metric": "val_acc", "params": {"train.learning_rate": "lr"}}
        told = penstock.run("imported", offline=False, search="bayesian", warm_start=False, mlflow=past)
        assert penstock.notes(told["run_id"])[0].endswith("Of MLflow's runs 3 lie in it, 1 do not.")
        shown = penstock("tune", "show", told["run_id"])
        assert shown["observed"] == 3 and shown["trials"][0]["chosen_by"] == "model"
        ours = client.get_experiment_by_name("penstock").experiment_id
        tracked = {run.info.run_name: run.data for run in client.search_runs([ours])}
        assert {"tune/0", "tune/1"} <= {data.tags["penstock.path"] for data in tracked.values()}
        (best,) = [data for data in tracked.values() if data.tags["penstock.path"] == "tune/0"]
        assert best.metrics["accuracy"] == shown["trials"][0]["metrics"]["accuracy"]


@pytest.mark.parametrize("offline", [False, True])
def test_past_runs_of_a_silent_mlflow_are_refused_before_anything_starts(penstock, monkeypatch, offline):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_port()}")
    runs = {path.name for path in (penstock.home / "runs").glob("*-*")}
    told = penstock.run("silent", offline, search="bayesian", mlflow={"experiment": "old-sweep"})
    assert penstock.exit_code == 2 and told["error"]["field"] == "tune.mlflow"
    assert re.search(r"MLflow at http://127.* does not answer \(.*\); start it, or leave", told["error"]["message"])
    assert {path.name for path in (penstock.home / "runs").glob("*-*")} == runs


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (("tune", "show", "nothing"), "is unknown"),
        (("tune", "extend", "{first}", "--trials", "0"), "give at least 1"),
        (("tune", "extend", "{first}"), "--trials"),
        (("tune", "fly", "{first}"), "invalid choice"),
    ],
)
def test_wrong_arguments_are_told_in_one_sentence(penstock, first, arguments, part):
    told = penstock(*(argument.format(first=first) for argument in arguments))
    assert penstock.exit_code == 2
    assert part in told["error"]["message"]


def test_the_examples_of_the_docs_are_valid_specs(tmp_path):
    text = (ROOT / "docs" / "tuning.md").read_text()
    blocks = [textwrap.dedent(block) for block in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)]
    assert len(blocks) == 3
    head = "task: text-classification\ndata: {source: x.csv}\nmodel: {architecture: bert}\n"
    path = tmp_path / "spec.yaml"
    for more in ([], blocks[1:]):
        path.write_text(head + blocks[0] + "".join(textwrap.indent(block, "  ") for block in more))
        assert load_spec(path).spec.tune.trials == 24
