"""The README's figures of the digits recipe: three seeds, each from nothing to a live endpoint. `make bench-demo`.

Asked for: at most 300 s, test accuracy at least 0.96, median of three seeds 0.97, at least 3x smaller, gate passed.
"""

from __future__ import annotations

import statistics

from benchmarks.command import run_once, stage_seconds

SEEDS = (0, 1, 2)


def main() -> None:
    print("seed  seconds  accuracy  compressed  baseline  smaller  gate    parameters")
    accuracies, seconds = [], []
    for seed in SEEDS:
        run = run_once(["digits", "--set", f"seed={seed}", "--set", "deploy.port=0"])
        result = run.result
        model, compressed = result["model"], result["compressed"]
        accuracies.append(model["metrics"]["test"]["accuracy"])
        seconds.append(run.seconds)
        print(
            f"{seed:4}  {run.seconds:7.0f}  {accuracies[-1]:8.4f}  {compressed['metrics']['test']['accuracy']:10.4f}  "
            f"{result['baseline']['metrics']['test']['accuracy']:8.4f}  {compressed['size_ratio']:6.2f}x  "
            f"{'passed' if result['gate']['passed'] else 'refused'}  {model['parameters']:,}   ({stage_seconds(run)})",
            flush=True,
        )
    print(f"median accuracy {statistics.median(accuracies):.4f}, median seconds {statistics.median(seconds):.0f}")


if __name__ == "__main__":
    main()
