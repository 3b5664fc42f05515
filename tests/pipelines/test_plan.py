"""`penstock plan`, and the refusal of a training that cannot fit, through the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from components.train.config import TrainConfig, ZeroConfig
from components.train.plan import machine
from pipelines.cli import main
from pipelines.commands.plan import parse_size
from pipelines.plan import PlanOptions, make_plan, make_planner, memory_error, written_setting
from pipelines.plan_inputs import Assumptions
from pipelines.spec import load_spec

GIB = 1 << 30
FIELDS = {*TrainConfig.model_fields, *ZeroConfig.model_fields}
LLAMA: dict[str, Any] = {
    "name": "small-llama",
    "task": "text-generation",
    "data": {"source": "absent.txt", "text": {"vocab_size": 1000}, "split": {"by": "position", "test": 0}},
    "model": {"architecture": "llama", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4},
    "train": {"seq_len": 128, "global_batch_size": 64, "max_steps": 100},
    "compress": False,
    "register": False,
    "deploy": False,
}


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(json.dumps(LLAMA))
    return path


def test_a_plan_is_one_document_and_reads_no_data(spec: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--gpus", "8", "--nodes", "2", "--gpu", "H100", "--price", "2.5", "--json"]
    assert main(["plan", str(spec), *arguments]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["status"] == "ok"
    assert plan["model"]["parameters"] == sum(module["parameters"] for module in plan["model"]["modules"])
    assert plan["chosen"]["zero_stage"] == 0
    assert plan["as_written"]["micro_batch_size"] == 8
    parts = {
        name: plan["chosen"]["bytes"][name]
        for name in plan["chosen"]["bytes"]
        if name not in ("device", "host", "nvme")
    }
    assert plan["chosen"]["bytes"]["device"] == sum(parts.values())
    assert plan["pace"]["samples"] == 100 * 64
    assert plan["pace"]["cost"] == pytest.approx(plan["pace"]["hours"] * 8 * 2.5)
    assert any("40% of 989 TFLOPS" in line for line in plan["assumed"])


def test_for_people_it_names_the_choice_and_its_reason(spec: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(spec), "--gpus", "4", "--gpu-memory", "1.8GiB"]) == 0
    shown = capsys.readouterr().out
    assert "decoder.model.layers.*.mlp" in shown
    assert "no          ZeRO-1: " in shown  # its bucket of 500 million gradients alone takes 1.9 GiB
    assert "chosen      ZeRO-0: the quickest way fits" in shown


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--gpus", "6"], "does not divide by 6 workers; make it a multiple, such as 66"),
        (["--gpus", "8", "--nodes", "3"], "--gpus 8 does not divide by --nodes 3"),
        (["--gpus", "8", "--gpu", "abacus"], "known are A10G"),
        (["--gpus", "8", "--gpu-memory", "much"], "give a size such as 80GiB"),
        (["--gpus", "0"], "--gpus is 0; give a number above 0"),
        (["--nodes", "2"], "give it too"),
    ],
)
def test_what_cannot_be_planned_is_told_in_one_sentence(
    spec: Path, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", str(spec), *arguments]) == 2
    shown = capsys.readouterr()
    assert said in shown.err
    assert shown.out == ""


def test_sizes() -> None:
    sizes = {"80GiB": 80 * GIB, "80GB": 80 * 10**9, "1.5 TiB": 3 << 39, "1024": 1024, "2g": 2 * 10**9}
    assert {text: parse_size("--gpu-memory", text) for text in sizes} == sizes


def test_a_training_that_cannot_fit_is_refused_with_what_would(monkeypatch: pytest.MonkeyPatch) -> None:
    large = load_spec({**LLAMA, "train": {**LLAMA["train"], "precision": "fp32", "global_batch_size": 2048}}).spec
    monkeypatch.setattr(machine, "machine_bytes", lambda: 2 * GIB)
    error = memory_error(large)
    assert error is not None
    assert error.exit_code == 2
    assert "a worker, but there are 2.0 GiB" in error.message
    assert "set train.zero.stage to 0, train.gradient_accumulation_steps to" in error.message


def test_the_refusal_comes_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], penstock_home: Path
) -> None:
    monkeypatch.setattr(machine, "machine_bytes", lambda: GIB // 2)
    # What a Ray elsewhere has is not known here, so nothing is refused with one.
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    path = tmp_path / "digits.yaml"
    path.write_text(json.dumps({"task": "image-classification", "data": {"source": "builtin://digits"},
                                "model": {"architecture": "mlp", "hidden_sizes": [64]}}))  # fmt: skip
    assert main(["run", str(path)]) == 2
    assert "This training needs" in capsys.readouterr().err
    assert not list(penstock_home.glob("runs/*/events.jsonl"))


def test_what_fits_by_far_is_let_pass_without_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "machine_bytes", lambda: 64 * GIB)
    monkeypatch.setattr("pipelines.plan.make_planner", lambda *_: pytest.fail("looked closer"))
    assert memory_error(load_spec("digits").spec) is None


def test_on_this_machine_the_plan_is_for_the_specs_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "machine_bytes", lambda: 16 * GIB)
    plan = make_plan(load_spec({**LLAMA, "train": {**LLAMA["train"], "workers": 2}}).spec, PlanOptions())
    if plan["machine"]["device"] == "cpu":
        assert plan["machine"]["memory_bytes"] == 8 * GIB
        assert plan["pace"] is None


def test_a_probe_gives_a_pace_without_a_peak() -> None:
    plan = make_plan(load_spec(LLAMA).spec, PlanOptions(probe=True))
    assert plan["pace"]["samples_per_s"] > 0


def test_a_choice_that_the_spec_cannot_name_yet_says_so() -> None:
    large = {**LLAMA["model"], "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32}
    spec = load_spec({**LLAMA, "model": large, "train": {**LLAMA["train"], "seq_len": 8192}}).spec
    plan = make_plan(spec, PlanOptions(gpus=64, gpu="H100"))
    for name in plan["chosen"]["changes"]:
        known = name in ("train.zero.stage", "train.gradient_accumulation_steps") or name.split(".")[-1] in FIELDS
        assert known != any(line.startswith(f"{name} is there") for line in plan["assumed"])


def test_of_a_range_of_workers_the_fewest_count(spec: Path, tmp_path: Path) -> None:
    path = tmp_path / "elastic.yaml"
    train = {**LLAMA["train"], "workers": {"min": 2, "max": 4}, "global_batch_size": 48, "zero": {"stage": 3}}
    path.write_text(json.dumps({**LLAMA, "train": train}))
    loaded, assume = load_spec(path).spec, Assumptions()
    planner = make_planner(loaded, PlanOptions(), assume)
    assert planner.demand.workers == 2
    assert written_setting(loaded, planner).micro_batch_size == 24
    assert any("2 of 2 to 4 workers" in line for line in assume.lines)
