"""What a kill, and another number of workers after it, change of a training. `make bench-exactness`.

A small GPT without dropout, on Python source, under torchrun: undisturbed on two workers; killed twice at
random moments and continued on two; and begun on one worker, killed, continued on four, killed, continued on two.
Asked for: on two workers the same bytes; on other numbers in fp32 every validation loss within 1e-3, in bf16 the last
one within the spread of three seeds. `STAGES="2" STEPS=60` makes it short.
"""

from __future__ import annotations

import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from components.context import Context
from components.data import stage as data_stage

STAGES = [int(stage) for stage in os.environ.get("STAGES", "0 1 2 3").split()]
STEPS = int(os.environ.get("STEPS", "100"))
SEEDS = (0, 1, 2)
TOLERANCE = 1e-3
EVERY = 5
"""Steps between two validations; a checkpoint is written after each."""
TEXTS = sorted(Path(json.__file__).parent.glob("*.py"))
"""What is learned: Python's own json package."""
MODEL = {"architecture": "gpt", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "dropout": 0.0}


@dataclasses.dataclass(frozen=True)
class Ended:
    """A training that came to its end: its validation losses by step, and the bytes of its weights."""

    losses: dict[int, float]
    weights: bytes


class Bench:
    """Trainings on one dataset, each in a folder of its own below `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.count = folder, 0
        (folder / "run").mkdir()
        (folder / "work").mkdir()
        context = Context("exactness", "data", folder, folder / "run", folder / "work", debug=True)
        (folder / "corpus.txt").write_text("\n".join(path.read_text() for path in TEXTS))
        split = {"by": "position", "validation": 0.1, "test": 0.0}
        data = {"source": str(folder / "corpus.txt"), "text": {"tokenizer": "byte"}, "split": split}
        config = data_stage.StageConfig.model_validate({"task": "text-generation", "data": data})
        self.dataset = data_stage.run(config, {}, str(folder / "dataset"), context).path

    def train(self, precision: str, stage: int, seed: int, workers: list[int]) -> Ended:
        """Trains on the first number of workers, is killed, goes on with the next one, and so on to the end."""
        self.count += 1
        place = self.folder / f"training-{self.count}"
        place.mkdir()
        train = {
            "max_steps": STEPS, "validate_every_steps": EVERY, "global_batch_size": 12, "seq_len": 64,
            "precision": precision, "zero": {"stage": stage}, "workers": 4, "min_workers": 1,
        }  # fmt: skip
        job = {
            "task": "text-generation", "model": MODEL, "train": train, "seed": seed, "dataset": str(self.dataset),
            "work_folder": str(place / "work"), "key_file": str(place / "key"),
        }  # fmt: skip
        (place / "job.json").write_text(json.dumps(job))
        chance = random.Random(f"{precision} {stage} {workers}")
        for number, size in enumerate(workers):
            last = number == len(workers) - 1
            # Within the second half of this worker count's share of the steps.
            share = STEPS / len(workers)
            run_ranks(place, size, None if last else int(share * (number + chance.uniform(0.5, 1))))
        result = json.loads((place / "work" / "result.json").read_text())
        losses = {entry["step"]: entry["loss"] for entry in result["history"]}
        weights = next((place / "work").rglob(result["weights"])).read_bytes()
        return Ended(losses, weights)


def run_ranks(place: Path, workers: int, kill_at: int | None) -> None:
    """Trains to the end, or until a checkpoint of step `kill_at` or later is there: then all workers get SIGKILL."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={workers}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    with (place / "output.log").open("ab") as log:
        process = subprocess.Popen(
            [*command, "-m", "components.train", str(place / "job.json")],
            stdout=log, stderr=log, start_new_session=True, env=environment,
        )  # fmt: skip
        try:
            while process.poll() is None:
                if kill_at is not None and newest_step(place) >= kill_at:
                    return
                time.sleep(0.05)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    if process.returncode != 0 or kill_at is not None:
        sys.exit(f"The training ended with {process.returncode}; its output: {(place / 'output.log').read_text()}")


def newest_step(place: Path) -> int:
    return max((int(path.name[5:]) for path in (place / "work" / "checkpoints").glob("step-*")), default=-1)


def main() -> None:
    print(f"GPT, {STEPS} steps, batch 12; validation loss every {EVERY} steps")
    print("precision stage  killed twice, 2 workers   1, then 4, then 2 workers")
    with tempfile.TemporaryDirectory(prefix="bench-exactness-") as name:
        bench = Bench(Path(name))
        for precision in ("fp32", "bf16"):
            for stage in STAGES:
                print(f"{precision:9} {stage:5}  {row(bench, precision, stage)}", flush=True)


def row(bench: Bench, precision: str, stage: int) -> str:
    """One line of the table."""
    whole = bench.train(precision, stage, SEEDS[0], [2])
    killed = bench.train(precision, stage, SEEDS[0], [2, 2, 2])
    moved = bench.train(precision, stage, SEEDS[0], [1, 4, 2])
    same = "the same bytes" if killed.weights == whole.weights else "OTHER BYTES"
    apart = max(abs(moved.losses[step] - loss) for step, loss in whole.losses.items())
    if precision == "fp32":
        verdict = "within" if apart <= TOLERANCE else "BEYOND"
        return f"{same:24} losses at most {apart:.1e} apart ({verdict} {TOLERANCE:g})"
    finals = [whole.losses[STEPS], *(bench.train(precision, stage, seed, [2]).losses[STEPS] for seed in SEEDS[1:])]
    final = moved.losses[STEPS]
    within = min(finals) <= final <= max(finals)
    spread = f"{min(finals):.4f} to {max(finals):.4f}"
    return f"{same:24} last loss {final:.4f}, three seeds {spread} ({'within' if within else 'BEYOND'})"


if __name__ == "__main__":
    main()
