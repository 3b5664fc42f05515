"""The news recipe on AG News: model and linear baseline side by side. `make bench-news`, with PENSTOCK_DATA set.

Asked for: within 480 s, test accuracy at least 0.84.
"""

from __future__ import annotations

import os
import sys

from benchmarks.command import run_once, stage_seconds


def main() -> None:
    folder = os.environ.get("PENSTOCK_DATA")
    if not folder:
        sys.exit("Set PENSTOCK_DATA to a folder with ag_news.csv (text,label; 7,600 rows).")
    run = run_once(["news", "--set", f"data.source={folder}/ag_news.csv", "--set", "deploy.port=0"])
    result = run.result
    print(f"{run.seconds:.0f} s in all ({stage_seconds(run)})")
    print(f"chosen   {result['sweep']['best_config']}")
    for name in ("model", "compressed", "baseline"):
        metrics = result[name]["metrics"]["test"]
        print(f"{name:10} accuracy {metrics['accuracy']:.4f}  f1 {metrics['f1']:.4f}")
    print(
        f"{result['compressed']['size_ratio']:.2f}x smaller, {result['compressed']['speedup']:.2f}x as fast as float32"
    )


if __name__ == "__main__":
    main()
