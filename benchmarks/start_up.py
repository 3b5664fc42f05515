"""Seconds from the start of the train stage to the end of its first step, and where they go. `make bench-start-up`.

Ray is up and the data cached: a first run, which is not counted, sees to that. Each further run trains a small GPT for
a few steps at another learning rate. Asked for: at most 12 s with one worker, 15 s with two.

    REPEATS   5
"""

from __future__ import annotations

import os
import tempfile
from itertools import count
from pathlib import Path
from statistics import median

from benchmarks.command import TimedRun, own_home, run_in

REPEATS = int(os.environ.get("REPEATS", "5"))
ASKED_S = {1: 12.0, 2: 15.0}
SPEC = """
version: 1
name: start-up
task: text-generation
data:
  source: builtin://python-stdlib
  text: {tokenizer: byte}
  split: {by: position, validation: 0.002, test: 0}
model: {architecture: gpt, hidden_size: 128, num_hidden_layers: 4, num_attention_heads: 4}
train: {seq_len: 64, global_batch_size: 8, max_steps: 3, zero: {stage: 1}}
compress: false
register: false
deploy: false
"""


def main() -> None:
    rates = (f"train.learning_rate={number}e-6" for number in count(1))
    with tempfile.TemporaryDirectory(prefix="bench-") as folder, own_home() as home:
        spec = Path(folder) / "start-up.yaml"
        spec.write_text(SPEC)
        arguments = [str(spec), "--until", "train", "--set"]
        run_in(home, [*arguments, next(rates)])
        found = {
            workers: [
                parts(run_in(home, [*arguments, next(rates), "--set", f"train.workers={workers}"]))
                for _ in range(REPEATS)
            ]
            for workers in ASKED_S
        }
    show(found)


def parts(run: TimedRun) -> dict[str, float]:
    """Seconds of each part of the start: until the worker runs, and what that one says of itself."""
    from components.artifacts import open_artifact
    from components.context import read_lines

    facts = open_artifact(run.result["model"]["uri"], kind="model").manifest.metadata["facts"]
    events = read_lines(Path(run.result["run_folder"]) / "events.jsonl")
    begun = max(event["time"] for event in events if event["stage"] == "train" and event["kind"] == "begin")
    return {"until the worker trains": facts["begun"] - begun, **facts["start_up_s"]}


def show(found: dict[int, list[dict[str, float]]]) -> None:
    """One column for each number of workers, the median of each part."""
    print("seconds" + " " * 24 + "".join(f"{workers:>4} worker{'s' * (workers > 1)}" for workers in found))
    for name in next(iter(found.values()))[0]:
        print(f"  {name:28}" + "".join(f"{median(run[name] for run in runs):11.2f}" for runs in found.values()))
    totals = {workers: [sum(run.values()) for run in runs] for workers, runs in found.items()}
    print(f"  {'first step done after':28}" + "".join(f"{median(runs):11.2f}" for runs in totals.values()))
    print(f"  {'smallest, largest':28}" + "".join(f"{min(runs):5.1f},{max(runs):5.1f}" for runs in totals.values()))
    print(f"  {'asked for':28}" + "".join(f"{ASKED_S[workers]:11.2f}" for workers in found))


if __name__ == "__main__":
    main()
