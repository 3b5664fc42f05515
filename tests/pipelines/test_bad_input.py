"""What a user can get wrong, given to the command as it is: one sentence, the right exit code, nothing half-written."""

from __future__ import annotations

import json
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines.cli import main
from pipelines.processes import FileLock, free_port
from tests.builders import png

IMAGES = {"task": "image-classification", "data": {"source": "builtin://digits"}, "model": {"architecture": "mlp"}}
TEXTS = {"task": "text-classification", "data": {"source": "data.csv"}, "model": {"architecture": "text-cnn"}}


class Told:
    """Runs commands in a folder and keeps how the last one ended."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder, self.capsys = folder, capsys
        self.exit_code, self.stdout, self.stderr = 0, "", ""

    def spec(self, values: dict[str, Any], **sections: Any) -> Path:
        path = self.folder / "spec.yaml"
        path.write_text(json.dumps({"name": "bad", **values, **sections}, indent=1))
        return path

    def run(self, *arguments: str | Path) -> Told:
        self.capsys.readouterr()
        self.exit_code = main(["run", *map(str, arguments)])
        self.stdout, self.stderr = self.capsys.readouterr()
        return self

    def sentence(self) -> str:
        """The one line that says what is wrong."""
        (line,) = [line for line in self.stderr.splitlines() if line.startswith("penstock:")]
        assert "Traceback" not in self.stderr
        return line


@pytest.fixture
def told(tmp_path: Path, penstock_home: Path, capsys: pytest.CaptureFixture[str]) -> Told:
    return Told(tmp_path, capsys)


def written(home: Path) -> set[str]:
    """What a refused command left, without the cache of source digests."""
    return {path.name for path in home.iterdir()} - {"cache"}


def texts(rows: int = 30, header: str = "text,label") -> str:
    return "\n".join([header, *(f"some words {n},{'ab'[n % 2]}" for n in range(rows))]) + "\n"


BAD_TABLES: dict[str, tuple[str | None, str]] = {
    "missing file": (None, "data.csv"),
    "empty file": ("", "empty"),
    "header only": ("text,label\n", "row"),
    "without the named column": (texts(header="text,class"), "label"),
    "a label seen once": (texts() + "rare words,c\n", "'c'"),
}


@pytest.mark.parametrize("case", BAD_TABLES)
def test_a_bad_table_is_refused_before_anything_is_written(told: Told, penstock_home: Path, case: str) -> None:
    table, named = BAD_TABLES[case]
    if table is not None:
        (told.folder / "data.csv").write_text(table)
    told.run(told.spec(TEXTS))
    assert told.exit_code == 2
    assert named in told.sentence()
    assert written(penstock_home) == set()


RATE = {"train.learning_rate": {"log_uniform": [1e-4, 1e-2]}}
SIZES = {"train.global_batch_size": {"grid": [16, 32]}}
BAD_SPECS: dict[str, tuple[dict[str, Any], str]] = {
    "unknown key": ({"train": {"epoch": 3}}, "train.epoch"),
    "wrong type": ({"train": {"epochs": "many"}}, "train.epochs"),
    "out of range": ({"train": {"epochs": 0}}, "train.epochs"),
    "sweep parameter that is no field": ({"tune": {"space": {"train.rate": {"choice": [1]}}}}, "train.rate"),
    "empty range": ({"tune": {"space": {"train.learning_rate": {"uniform": [2, 1]}}}}, "is empty"),
    "trials beyond the grid": ({"tune": {"search": "grid", "trials": 3, "space": SIZES}}, "the grid has 2 points"),
    "constraint nothing meets": ({"tune": {"space": RATE, "constraints": ["train.learning_rate > 1"]}}, "loosen the"),
    "metric that no task reports": ({"tune": {"space": RATE, "metric": "bleu"}}, "reported by no trial"),
    "constraint that cannot be read": ({"tune": {"space": RATE, "constraints": ["train.epochs <"]}}, "cannot be read"),
    "constraint on no field": ({"tune": {"space": RATE, "constraints": ["train.epoch < 3"]}}, "train.epoch"),
    "section of a later version": ({"fuse": {}}, "not available in this version"),
}


@pytest.mark.parametrize("case", BAD_SPECS)
def test_a_bad_spec_is_refused_with_its_line(told: Told, penstock_home: Path, case: str) -> None:
    sections, named = BAD_SPECS[case]
    told.run(told.spec(IMAGES, **sections))
    assert told.exit_code == 2
    assert named in told.sentence()
    assert "line " in told.sentence()
    assert written(penstock_home) == set()


def test_as_json_an_error_is_one_document_and_nothing_else(told: Told) -> None:
    told.run(told.spec(IMAGES, train={"epochs": 0}), "--json")
    assert told.exit_code == 2
    assert told.stderr == ""
    document = json.loads(told.stdout)
    assert document["status"] == "failed"
    assert {"kind": "spec", "field": "train.epochs"}.items() <= document["error"].items()


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


def test_a_port_in_use_is_refused_before_anything_runs(told: Told, penstock_home: Path, taken_port: int) -> None:
    told.run(told.spec(IMAGES, deploy={"port": taken_port}))
    assert told.exit_code == 2
    assert str(taken_port) in told.sentence()
    assert written(penstock_home) == {"runs"}
    assert not list(penstock_home.glob("runs/*/events.jsonl"))


@pytest.fixture
def dead_mlflow(monkeypatch: pytest.MonkeyPatch) -> str:
    uri = f"http://127.0.0.1:{free_port()}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    return uri


def test_an_mlflow_that_does_not_answer_is_refused(told: Told, penstock_home: Path, dead_mlflow: str) -> None:
    told.run(told.spec(IMAGES, deploy=False))
    assert told.exit_code == 2
    assert dead_mlflow in told.sentence()
    assert "--offline" in told.sentence() + told.stderr
    assert not list(penstock_home.glob("runs/*/events.jsonl"))


def test_offline_runs_without_mlflow_and_keeps_the_journal(told: Told, penstock_home: Path, dead_mlflow: str) -> None:
    told.run(told.spec(IMAGES, deploy=False), "--offline", "--debug", "--until", "data")
    assert told.exit_code == 0


def test_the_run_that_another_command_holds_is_refused_by_its_pid(told: Told, penstock_home: Path) -> None:
    arguments = (told.spec(IMAGES), "--debug", "--until", "data")
    assert told.run(*arguments).exit_code == 0, told.stderr
    (folder,) = penstock_home.glob("runs/bad-*")
    events = (folder / "events.jsonl").read_bytes()
    holder = FileLock(folder / "lock")
    assert holder.acquire()
    told.run(*arguments)
    assert told.exit_code == 2
    assert f"process {holder.holder()}" in told.sentence()
    assert (folder / "events.jsonl").read_bytes() == events


def image_folder(folder: Path, good: int, corrupt: int) -> Path:
    generator = np.random.default_rng(0)
    for number in range(good + corrupt):
        path = folder / "images" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        whole = png(generator.integers(0, 255, (8, 8), dtype=np.uint8))
        path.write_bytes(whole if number < good else whole[: len(whole) // 2])
    return folder / "images"


def test_a_corrupt_image_among_good_ones_is_dropped_and_told(told: Told, penstock_home: Path) -> None:
    source = image_folder(told.folder, good=58, corrupt=2)
    told.run(told.spec({**IMAGES, "data": {"source": str(source), "max_corrupt": 0.05}}), "--debug", "--until", "data")
    assert told.exit_code == 0
    (report,) = penstock_home.glob("artifacts/data/*/report.json")
    assert "58.png" in report.read_text()
    schema = json.loads((report.parent / "schema.json").read_text())
    assert sum(schema["rows"].values()) == 58


def test_more_corrupt_images_than_allowed_are_an_error_that_names_one(told: Told, penstock_home: Path) -> None:
    source = image_folder(told.folder, good=50, corrupt=10)
    told.run(told.spec({**IMAGES, "data": {"source": str(source), "max_corrupt": 0.05}}), "--debug", "--until", "data")
    assert told.exit_code == 2
    assert "max_corrupt" in told.sentence() + told.stderr
    assert not list(penstock_home.glob("artifacts/data/*"))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip(path: Path) -> None:
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    path.write_bytes(damaged)


@pytest.mark.parametrize(
    ("name", "damage"),
    [("splits/train.arrow", cut), ("schema.json", flip), ("manifest.json", Path.unlink)],
    ids=["truncated", "altered", "removed"],
)
def test_a_damaged_artifact_is_made_again(
    told: Told, penstock_home: Path, damage: Callable[[Path], None], name: str
) -> None:
    arguments = (told.spec(IMAGES), "--debug", "--until", "data", "--json")
    first = json.loads(told.run(*arguments).stdout)
    (artifact,) = penstock_home.glob("artifacts/data/*")
    whole = (artifact / "manifest.json").read_bytes()
    damage(artifact / name)
    again = json.loads(told.run(*arguments).stdout)
    assert told.exit_code == 0
    assert again["run_id"] == first["run_id"]
    assert again["stages"]["data"]["cached"] is False
    assert json.loads((artifact / "manifest.json").read_bytes())["digest"] == json.loads(whole)["digest"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 64 kB; only root may mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k,mode=0700", "tmpfs", str(folder)], capture_output=True
    )
    if mounted.returncode != 0:
        pytest.skip(f"no small disk can be mounted here: {mounted.stderr.decode().strip()}")
    yield folder
    # Lazily: a file that is still mapped into this process keeps the disk busy until the collector comes by.
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_full_disk_is_told_and_the_same_command_goes_on(
    told: Told, penstock_home: Path, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PENSTOCK_ARTIFACT_ROOT", str(small_disk))
    arguments = (told.spec(IMAGES), "--debug", "--until", "data")
    told.run(*arguments)
    assert told.exit_code == 1
    assert "disk is full" in told.sentence()
    assert not list(small_disk.rglob("manifest.json"))
    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
    assert told.run(*arguments).exit_code == 0, told.stderr


def test_a_home_on_a_full_disk_is_told(told: Told, small_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PENSTOCK_HOME", str(small_disk))
    (small_disk / "filler").write_bytes(bytes(64 << 10))
    told.run(told.spec(IMAGES), "--debug", "--until", "data")
    assert told.exit_code == 1
    assert "disk is full" in told.sentence()


VIT = {"architecture": "vit", "hidden_size": 16, "num_attention_heads": 2, "patch_size": 4}
LACKING: dict[str, tuple[dict[str, Any], str]] = {
    "fp16 without a GPU": ({"train": {"precision": "fp16"}}, "for GPUs"),
    "compiled shards": ({"train": {"compile": True, "zero": {"stage": 3}}}, "compile needs whole weights"),
    "an average of shards": ({"train": {"ema": {}, "zero": {"stage": 3}}}, "ema averages whole weights"),
    "adapters in shards": ({"model": {**VIT, "lora": {}}, "train": {"zero": {"stage": 3}}}, "model.lora merges"),
}


@pytest.mark.parametrize("case", LACKING)
def test_a_training_that_cannot_be_is_refused_before_anything_is_written(
    told: Told, penstock_home: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    # What a cluster has is not known here; only this machine is asked.
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    sections, named = LACKING[case]
    told.run(told.spec({**IMAGES, **sections}))
    assert told.exit_code == 2
    assert named in told.sentence()
    assert written(penstock_home) == set()


GPT = {"architecture": "gpt", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
WRITER: dict[str, Any] = {
    "task": "text-generation",
    "data": {"source": "text.txt", "text": {"tokenizer": "byte"}, "split": {"by": "position", "test": 0}},
    "model": GPT,
    "train": {"seq_len": 16, "max_steps": 4, "global_batch_size": 8},
    **{section: False for section in ("compress", "register", "deploy")},
}
BAD_TRAININGS: dict[str, tuple[dict[str, Any], str]] = {
    "heads that do not divide": ({"model.num_attention_heads": 3}, "hidden_size 16 does not divide by num_att"),
    "shards of an optimizer for whole matrices": (
        {"train.optimizer.name": "muon", "train.workers": 2}, "muon needs whole matrices"),
    "weights moved out that no worker shares": (
        {"train.zero.offload_parameters": "cpu", "train.zero.stage": 2}, "zero.stage is 2, set it to 3"),
    "an unknown stage": ({"train.zero.stage": 4}, "allowed: 0, 1, 2 or 3"),
    "a batch that the workers cannot share": ({"train.workers": 3}, "global_batch_size 8 does not divide by workers"),
    "a batch that the steps cannot share": ({"train.gradient_accumulation_steps": 3}, "does not divide by workers"),
    "a batch that fewer workers cannot share": ({"train.workers": {"min": 2, "max": 3}}, "make it a multiple of 6"),
    "a corpus shorter than one sequence": ({"train.seq_len": 4000}, "The train split has 900 characters, too few"),
    "a validation split shorter than one": ({"train.seq_len": 400}, "The validation split has 100 characters, too few"),
    "characters shorter than one sequence": (
        {"train.seq_len": 100, "data.text.tokenizer": "character"}, "The validation split has 100 characters, too few"),
    "a tokenizer that is not the network's": (
        {"model.pretrained": "gpt", "data.text.tokenizer": "byte"}, "weights know its own tokens alone"),
    "a tokenizer of another network": (
        {"model.pretrained": "gpt", "data.text.tokenizer": "letters"}, "tokens are others than those that the weights"),
    "weights of another architecture": (
        {"model.pretrained": "llama", "data.text.tokenizer": "llama"}, "set model.architecture to llama"),
    "weights of an unknown architecture": (
        {"model.pretrained": "mamba", "data.text.tokenizer": "gpt"}, "the type mamba, but model.architecture is gpt"),
    "a network without weights": ({"model.pretrained": "letters", "data.text.tokenizer": "letters"}, "safetensors wei"),
    "more positions than the network knows": (
        {"model.pretrained": "gpt", "data.text.tokenizer": "gpt", "train.seq_len": 33}, "set train.seq_len to 32 or "),
    "a precision for GPUs": ({"train.precision": "fp16"}, "fp16, which is for GPUs"),
    "an unknown precision": ({"train.precision": "fp8"}, "allowed: 'auto', 'fp32', 'bf16' or 'fp16'"),
}  # fmt: skip
"""Changes by dotted name; the names of networks stand for folders."""


def write_network(folder: Path, model_type: str | None, tokenizer: Any) -> None:
    """What a pretrained network's folder holds, its weights empty: they are not looked into."""
    folder.mkdir()
    if model_type is not None:
        (folder / "config.json").write_text(
            json.dumps({"model_type": model_type, "vocab_size": 300, "n_positions": 32})
        )
        (folder / "model.safetensors").touch()
    (folder / "tokenizer.json").write_text(tokenizer.to_str())
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<end>"}))


@pytest.fixture
def networks(tmp_path: Path) -> None:
    """Two that share their tokens, one with others, one of a kind that is not known here."""
    from components.tasks.tokenizers import byte_tokenizer, character_tokenizer

    for name, model_type in (("gpt", "gpt2"), ("llama", "llama"), ("mamba", "mamba")):
        write_network(tmp_path / name, model_type, byte_tokenizer(["<end>"]))
    write_network(tmp_path / "letters", None, character_tokenizer(iter(["abc"]), ["<end>"]))


@pytest.mark.usefixtures("networks")
@pytest.mark.parametrize("case", BAD_TRAININGS)
def test_a_training_of_a_language_model_that_cannot_be_is_refused_in_one_sentence(
    told: Told, penstock_home: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    (told.folder / "text.txt").write_text("abcdefghij" * 100)
    changes, named = BAD_TRAININGS[case]
    spec = json.loads(json.dumps(WRITER))
    for name, value in changes.items():
        *path, last = name.split(".")
        section = spec
        for key in path:
            section = section.setdefault(key, {})
        section[last] = value
    told.run(told.spec(spec))
    assert told.exit_code == 2
    assert named in told.sentence()
    assert written(penstock_home) == set()


def test_a_network_without_layers_to_recompute_is_refused(told: Told, penstock_home: Path) -> None:
    told.run(told.spec(IMAGES, train={"activation_checkpointing": True}))
    assert told.exit_code == 2
    assert "mlp is none; set it to false" in told.sentence()
    assert written(penstock_home) == set()


def test_bf16_on_a_gpu_without_it_is_refused() -> None:
    from components.errors import SpecError
    from components.train.device import Hardware, plan_placement

    with pytest.raises(SpecError, match="bf16, which this GPU does not have"):
        plan_placement(Hardware(gpus=1, cores=4, gpu_bf16=False), 1, "bf16")
