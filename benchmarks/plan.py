"""Predicted against measured peak memory on a CPU, each training in a process of its own. `make bench-plan`.

Measured is what `penstock run` records as `peak_memory_bytes`: the process's high-water mark since the training began,
less what it held before. Asked for: a median error of at most 10 %. The planner's constants were found on `CASES`;
`UNSEEN` were written down afterwards, and nothing was fitted to them.
"""

from __future__ import annotations

import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

STEPS = 4
CORPUS_BYTES = 300_000
CASES: dict[str, dict[str, Any]] = {
    "gpt fp32": {"model": {"architecture": "gpt", "hidden_size": 256, "num_hidden_layers": 4, "dropout": 0.0}},
    "gpt fp32 dropout": {"model": {"architecture": "gpt", "hidden_size": 256, "num_hidden_layers": 4, "dropout": 0.1}},
    "gpt bf16": {"model": {"architecture": "gpt", "hidden_size": 384, "num_hidden_layers": 6, "dropout": 0.0},
                 "train": {"precision": "bf16"}},
    "llama fp32": {"model": {"architecture": "llama", "hidden_size": 384, "num_hidden_layers": 4}},
    "llama bf16 sgd": {"model": {"architecture": "llama", "hidden_size": 384, "num_hidden_layers": 6},
                       "train": {"precision": "bf16", "optimizer": {"name": "sgd"}}},
    "llama wide, accumulation": {"model": {"architecture": "llama", "hidden_size": 1024, "num_hidden_layers": 2},
                                 "train": {"global_batch_size": 8, "gradient_accumulation_steps": 4}},
    "gpt wide, ZeRO-2": {"model": {"architecture": "gpt", "hidden_size": 768, "num_hidden_layers": 4, "dropout": 0.0},
                         "train": {"global_batch_size": 8, "zero": {"stage": 2}}},
    "bert fp32": {"model": {"architecture": "bert", "hidden_size": 384, "num_hidden_layers": 4}},
    "bert bf16 momentum": {"model": {"architecture": "bert", "hidden_size": 512, "num_hidden_layers": 4},
                           "train": {"precision": "bf16", "optimizer": {"name": "momentum"}}},
    "vit fp32": {"model": {"architecture": "vit", "patch_size": 2, "hidden_size": 384, "num_hidden_layers": 6},
                 "train": {"global_batch_size": 256}},
    "mlp wide adamw": {"model": {"architecture": "mlp", "hidden_sizes": [6144, 6144]},
                       "train": {"global_batch_size": 128}},
    "mlp wide adagrad": {"model": {"architecture": "mlp", "hidden_sizes": [6144, 6144]},
                         "train": {"global_batch_size": 128, "optimizer": {"name": "adagrad"}}},
    "gpt long context": {"model": {"architecture": "gpt", "hidden_size": 320, "num_hidden_layers": 5,
                                   "num_attention_heads": 5, "dropout": 0.0},
                         "train": {"global_batch_size": 2, "seq_len": 1024}},
    "gpt recomputed": {"model": {"architecture": "gpt", "hidden_size": 512, "num_hidden_layers": 6, "dropout": 0.0},
                       "train": {"activation_checkpointing": True}},
    "gpt averaged weights": {"model": {"architecture": "gpt", "hidden_size": 640, "num_hidden_layers": 3,
                                       "num_attention_heads": 10, "dropout": 0.0},
                             "train": {"global_batch_size": 4, "ema": {"decay": 0.99}}},
    "gpt ZeRO-2, state on host": {"model": {"architecture": "gpt", "hidden_size": 512, "num_hidden_layers": 5,
                                            "dropout": 0.0},
                                  "train": {"global_batch_size": 8,
                                            "zero": {"stage": 2, "offload_optimizer": "cpu"}}},
    "llama grouped keys": {"model": {"architecture": "llama", "hidden_size": 512, "num_hidden_layers": 3,
                                     "num_attention_heads": 8, "num_key_value_heads": 2},
                           "train": {"global_batch_size": 8}},
    "bert small batch": {"model": {"architecture": "bert", "hidden_size": 768, "num_hidden_layers": 3},
                         "train": {"global_batch_size": 4}},
    "vit momentum": {"model": {"architecture": "vit", "patch_size": 2, "hidden_size": 256, "num_hidden_layers": 4},
                     "train": {"global_batch_size": 512, "optimizer": {"name": "momentum"}}},
    "mlp sgd": {"model": {"architecture": "mlp", "hidden_sizes": [8192, 4096]},
                "train": {"global_batch_size": 512, "optimizer": {"name": "sgd"}}},
    "gpt muon": {"model": {"architecture": "gpt", "hidden_size": 448, "num_hidden_layers": 6,
                           "num_attention_heads": 7, "dropout": 0.0},
                 "train": {"global_batch_size": 8, "optimizer": {"name": "muon"}}},
    "gpt saved beside": {"model": {"architecture": "gpt", "hidden_size": 384, "num_hidden_layers": 7, "dropout": 0.1},
                         "train": {"global_batch_size": 8, "checkpoint_every_steps": 2}},
    "llama ZeRO-3": {"model": {"architecture": "llama", "hidden_size": 512, "num_hidden_layers": 4},
                     "train": {"global_batch_size": 8, "zero": {"stage": 3}}},
    "bert recomputed, averaged": {"model": {"architecture": "bert", "hidden_size": 512, "num_hidden_layers": 6},
                                  "train": {"global_batch_size": 32, "activation_checkpointing": True,
                                            "ema": {"decay": 0.99}, "optimizer": {"name": "adagrad"}}},
    "vit bf16": {"model": {"architecture": "vit", "patch_size": 2, "hidden_size": 320, "num_hidden_layers": 5,
                           "num_attention_heads": 5},
                 "train": {"global_batch_size": 96, "precision": "bf16"}},
    "resnet": {"model": {"architecture": "resnet", "embedding_size": 64, "hidden_sizes": [128, 256, 512],
                         "depths": [2, 2, 2]},
               "train": {"global_batch_size": 192, "optimizer": {"name": "adam"}}},
    "mlp deep, accumulation": {"model": {"architecture": "mlp", "hidden_sizes": [4096, 4096, 4096]},
                               "train": {"global_batch_size": 512, "gradient_accumulation_steps": 2,
                                         "optimizer": {"name": "momentum"}}},
    "lstm": {"model": {"architecture": "lstm", "embedding_size": 256, "hidden_size": 640},
             "train": {"global_batch_size": 32}},
    "t5": {"model": {"architecture": "t5", "hidden_size": 384, "num_hidden_layers": 3}},
    "gpt wide, recomputed": {"model": {"architecture": "gpt", "hidden_size": 768, "num_hidden_layers": 4,
                                       "num_attention_heads": 12, "dropout": 0.1},
                             "train": {"global_batch_size": 8, "activation_checkpointing": True}},
    "llama momentum, averaged": {"model": {"architecture": "llama", "hidden_size": 448, "num_hidden_layers": 5,
                                           "num_attention_heads": 7},
                                 "train": {"global_batch_size": 12, "ema": {"decay": 0.99},
                                           "optimizer": {"name": "momentum"}}},
    "bert sgd": {"model": {"architecture": "bert", "hidden_size": 320, "num_hidden_layers": 8,
                           "num_attention_heads": 5},
                 "train": {"global_batch_size": 24, "optimizer": {"name": "sgd"}}},
    "vit recomputed": {"model": {"architecture": "vit", "patch_size": 2, "hidden_size": 512, "num_hidden_layers": 4},
                       "train": {"global_batch_size": 128, "activation_checkpointing": True,
                                 "optimizer": {"name": "adam"}}},
    "lstm, two layers": {"model": {"architecture": "lstm", "embedding_size": 512, "hidden_size": 384,
                                   "num_hidden_layers": 2},
                         "train": {"global_batch_size": 48, "optimizer": {"name": "momentum"}}},
    "mlp muon": {"model": {"architecture": "mlp", "hidden_sizes": [3072, 3072, 3072]},
                 "train": {"global_batch_size": 256, "optimizer": {"name": "muon"}}},
    "gpt bf16, ZeRO-1, state on host": {"model": {"architecture": "gpt", "hidden_size": 448, "num_hidden_layers": 3,
                                                  "num_attention_heads": 7, "dropout": 0.0},
                                        "train": {"global_batch_size": 8, "precision": "bf16",
                                                  "zero": {"stage": 1, "offload_optimizer": "cpu"}}},
    "t5 adagrad, accumulation": {"model": {"architecture": "t5", "hidden_size": 256, "num_hidden_layers": 5},
                                 "train": {"global_batch_size": 64, "gradient_accumulation_steps": 4,
                                           "optimizer": {"name": "adagrad"}}},
}  # fmt: skip
UNSEEN: dict[str, dict[str, Any]] = {
    "gpt dropout, accumulation": {"model": {"architecture": "gpt", "hidden_size": 512, "num_hidden_layers": 4,
                                            "dropout": 0.1},
                                  "train": {"global_batch_size": 12, "gradient_accumulation_steps": 3}},
    "llama muon": {"model": {"architecture": "llama", "hidden_size": 640, "num_hidden_layers": 3,
                             "num_attention_heads": 10, "num_key_value_heads": 5},
                   "train": {"global_batch_size": 6, "optimizer": {"name": "muon"}}},
    "llama recomputed, bf16": {"model": {"architecture": "llama", "hidden_size": 320, "num_hidden_layers": 5,
                                         "num_attention_heads": 5},
                               "train": {"global_batch_size": 8, "precision": "bf16",
                                         "activation_checkpointing": True}},
    "bert averaged": {"model": {"architecture": "bert", "hidden_size": 448, "num_hidden_layers": 5,
                                "num_attention_heads": 7},
                      "train": {"global_batch_size": 20, "ema": {"decay": 0.99}, "optimizer": {"name": "adam"}}},
    "vit adagrad": {"model": {"architecture": "vit", "patch_size": 2, "hidden_size": 192, "num_hidden_layers": 9,
                              "num_attention_heads": 3},
                    "train": {"global_batch_size": 320, "optimizer": {"name": "adagrad"}}},
    "mlp ZeRO-3": {"model": {"architecture": "mlp", "hidden_sizes": [5120, 5120]},
                   "train": {"global_batch_size": 64, "zero": {"stage": 3}}},
    "lstm wide": {"model": {"architecture": "lstm", "embedding_size": 320, "hidden_size": 896},
                  "train": {"global_batch_size": 16, "optimizer": {"name": "sgd"}}},
    "t5 momentum": {"model": {"architecture": "t5", "hidden_size": 512, "num_hidden_layers": 2},
                    "train": {"global_batch_size": 24, "optimizer": {"name": "momentum"}}},
}  # fmt: skip
TASKS = {"gpt": "text-generation", "llama": "text-generation", "bert": "text-classification",
         "lstm": "text-classification", "t5": "text2text-generation"}  # fmt: skip
IMAGES = "image-classification"


@dataclass(frozen=True)
class Measured:
    """One training: bytes that were predicted and measured, and how long it took."""

    predicted: int
    measured: int
    seconds: float

    @property
    def error(self) -> float:
        return self.predicted / self.measured - 1


def main(words: list[str]) -> None:
    """Runs the cases whose names hold one of the words; all without words."""
    print(f"{'training':31} {'predicted':>10} {'measured':>10} {'error':>7}  seconds")
    with tempfile.TemporaryDirectory(prefix="bench-plan-") as folder:
        datasets, found = make_datasets(Path(folder)), []
        for title, cases in (("cases", CASES), ("unseen cases", UNSEEN)):
            chosen = {name: case for name, case in cases.items() if not words or any(word in name for word in words)}
            errors = [show_case(name, case, datasets, Path(folder)) for name, case in chosen.items()]
            show_errors(title, errors)
            found += errors
        show_errors("all", found)


def show_errors(title: str, errors: list[float]) -> None:
    if errors:
        print(f"{title}: median error {statistics.median(errors):.1%}, largest {max(errors):.1%}, n = {len(errors)}")


def show_case(name: str, case: dict[str, Any], datasets: dict[str, Path], folder: Path) -> float:
    """One line of the table; gives the size of the error."""
    task = TASKS.get(case["model"]["architecture"], IMAGES)
    found = measure(task, case, datasets[task], folder / re.sub("[^a-z0-9]+", "-", name.lower()))
    sizes = f"{found.predicted / 1e6:7.0f} MB {found.measured / 1e6:7.0f} MB"
    print(f"{name:31} {sizes} {found.error:+7.1%}  {found.seconds:.0f}", flush=True)
    return abs(found.error)


def measure(task: str, case: dict[str, Any], dataset: Path, folder: Path) -> Measured:
    """Trains a few steps in another process and asks the planner about it."""
    from components.train.__main__ import read_job
    from components.train.plan.forecast import forecast_peak
    from components.train.result import RESULT_NAME

    defaults = {"max_steps": STEPS, "validate_every_steps": STEPS, "global_batch_size": 16, "precision": "fp32"}
    folder.mkdir()
    values = {
        "task": task,
        "model": case["model"],
        "train": {**defaults, **({"seq_len": 256} if task == "text-generation" else {}), **case.get("train", {})},
        "seed": 0,
        "dataset": str(dataset),
        "work_folder": str(folder / "work"),
        "key_file": str(folder / "key"),
    }
    (folder / "job.json").write_text(json.dumps(values))
    started = time.monotonic()
    command = [sys.executable, "-W", "ignore", "-m", "components.train", str(folder / "job.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=dict(os.environ))
    if done.returncode != 0:
        sys.exit(f"{values['model']} ended with {done.returncode}: {done.stderr[-2000:]}")
    facts = json.loads((folder / "work" / RESULT_NAME).read_text())["facts"]
    job = read_job(folder / "job.json")
    seconds = time.monotonic() - started
    return Measured(forecast_peak(job, facts), facts["peak_memory_bytes"], seconds)


def make_datasets(folder: Path) -> dict[str, Path]:
    """Digits, and the standard library's own source as running text, as labelled pieces, and in pairs."""
    text = read_corpus()
    (folder / "corpus.txt").write_text(text)
    pieces = [text[start : start + 400] for start in range(0, len(text) - 400, 400)]
    lines = [json.dumps({"text": piece, "label": "ab"[number % 2]}) for number, piece in enumerate(pieces)]
    (folder / "pieces.jsonl").write_text("\n".join(lines))
    pairs = [json.dumps({"source": piece[:128], "target": piece[128:168]}) for piece in pieces]
    (folder / "pairs.jsonl").write_text("\n".join(pairs))
    sources: dict[str, dict[str, Any]] = {
        "text-generation": {"source": str(folder / "corpus.txt"), "text": {"vocab_size": 4096},
                            "split": {"by": "position", "test": 0}},
        "text-classification": {"source": str(folder / "pieces.jsonl"), "text": {"max_length": 128}},
        "text2text-generation": {"source": str(folder / "pairs.jsonl"),
                                 "text": {"tokenizer": "byte", "max_length": 128, "max_target_length": 48}},
        IMAGES: {"source": "builtin://digits"},
    }  # fmt: skip
    return {task: make_dataset(task, data, folder / task) for task, data in sources.items()}


def make_dataset(task: str, data: dict[str, Any], folder: Path) -> Path:
    """The data stage's Dataset."""
    from components.context import Context
    from components.data.stage import StageConfig, run

    for name in ("home", "run", "work"):
        (folder / name).mkdir(parents=True)
    context = Context("bench", "data", folder / "home", folder / "run", folder / "work", debug=True)
    config = StageConfig.model_validate({"task": task, "data": data})
    return run(config, {}, str(folder / "dataset"), context).path


def read_corpus() -> str:
    """Source files of the standard library, in the order of their names."""
    library = Path(os.__file__).parent
    text = ""
    for path in sorted(library.glob("[a-d]*.py")):
        text += path.read_text(errors="replace")
        if len(text) >= CORPUS_BYTES:
            break
    return text[:CORPUS_BYTES]


if __name__ == "__main__":
    main(sys.argv[1:])
