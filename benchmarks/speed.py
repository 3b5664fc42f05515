"""Milliseconds a step of a GPT, ours and others', in turn on the same machine. `make bench-speed`.

The same network (10.7M parameters), data (the standard library's source as bytes) and batch for all; see
`contenders.py`. A round runs every contender once, in a process of its own; printed are the median over the rounds, and
the median of each round's own ratio, since a machine's pace drifts.

    ROUNDS   5
    STEPS    10, that are timed in each process
    ONLY     names of the rows to run, with commas between them

Asked for, tuned (bf16, compiled, fused AdamW): at least 0.97 of the bare loop's speed, 1.0 of Trainer's and
accelerate's. At everybody's defaults: at least 1.5 of the fastest.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

from benchmarks.command import own_home, run_in
from benchmarks.contenders import Order

ROUNDS = int(os.environ.get("ROUNDS", "5"))
STEPS = int(os.environ.get("STEPS", "10"))
GPT = {"architecture": "gpt", "hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 6, "dropout": 0.0}
BATCH, CONTEXT = 8, 256
LIMIT_S = 600
SPEC = """
version: 1
name: speed
task: text-generation
data:
  source: builtin://python-stdlib
  text: {tokenizer: byte}
  split: {by: position, validation: 0.002, test: 0}
model: {architecture: gpt}
compress: false
register: false
deploy: false
"""


@dataclass(frozen=True)
class Row:
    """One contender in one setting; `zero_stage` is ours."""

    name: str
    contender: str
    tuned: bool
    workers: int = 1
    zero_stage: int = 0


ROWS = (
    Row("penstock zero-1", "penstock", True, zero_stage=1),
    Row("penstock", "penstock", True),
    Row("bare", "bare", True),
    Row("trainer", "trainer", True),
    Row("accelerate", "accelerate", True),
    Row("penstock zero-1 x2", "penstock", True, workers=2, zero_stage=1),
    Row("ddp x2", "ddp", True, workers=2),
    Row("penstock default", "penstock", False),
    Row("bare default", "bare", False),
    Row("trainer default", "trainer", False),
    Row("accelerate default", "accelerate", False),
)
ASKED = (
    ("penstock zero-1", ("bare",), 0.97),
    ("penstock zero-1", ("trainer", "accelerate"), 1.0),
    ("penstock", ("bare",), 0.97),
    ("penstock", ("trainer", "accelerate"), 1.0),
    ("penstock zero-1 x2", ("ddp x2",), 0.97),
    ("penstock default", ("bare default", "trainer default", "accelerate default"), 1.5),
)


def main() -> None:
    from pipelines.ray_cluster import lease

    only = list(filter(None, os.environ.get("ONLY", "").split(",")))
    rows = [row for row in ROWS if not only or row.name in only]
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        folder = Path(name)
        spec = folder / "speed.yaml"
        spec.write_text(SPEC)
        with own_home() as home, lease(home):
            run = run_in(home, [str(spec), "--until", "data"])
            os.environ.update(environment(home))
            dataset = run.result["stages"]["data"]["artifact"].removeprefix("file://")
            measured: dict[str, list[float]] = {row.name: [] for row in rows}
            for number in range(ROUNDS):
                for row in rows:
                    measured[row.name].append(time_row(row, dataset, folder))
                    print(
                        f"round {number + 1}: {row.name} {measured[row.name][-1]:.0f} ms", file=sys.stderr, flush=True
                    )
    show(measured)


def environment(home: Path) -> dict[str, str]:
    """Of all contenders: the Ray of the run that made the data, and one cache of generated code."""
    from pipelines.ray_cluster import client_environment, compute_environment, read_record

    cluster = read_record(home)
    assert cluster is not None, "the data stage started Ray"
    return {**client_environment(home), **compute_environment(), "RAY_ADDRESS": cluster.address}


def time_row(row: Row, dataset: str, folder: Path) -> float:
    """Milliseconds a step."""
    scratch = folder / "run"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    order = Order(dataset, str(scratch), GPT, BATCH, CONTEXT, STEPS, row.tuned, row.workers, row.zero_stage)
    (scratch / "order.json").write_text(json.dumps(asdict(order)))
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(row.workers)]
    command = [
        sys.executable,
        *(launcher if row.contender == "ddp" else []),
        str(Path(__file__).with_name("contenders.py")),
        row.contender,
        str(scratch / "order.json"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=LIMIT_S)
    if done.returncode:
        sys.exit(f"{row.name} ended with {done.returncode}: {done.stdout}{done.stderr}")
    return float(done.stdout.split()[-1])


def show(measured: dict[str, list[float]]) -> None:
    """The table, and what was asked for beside what was found."""
    print(f"ms a step, batch {BATCH}x{CONTEXT}, median of {ROUNDS} (smallest to largest)")
    for name, values in measured.items():
        print(f"  {name:20} {median(values):7.0f}  ({min(values):.0f} to {max(values):.0f})")
    print("speed against")
    for ours, peers, asked in ASKED:
        if not {ours, *peers} <= set(measured):
            continue
        rounds = zip(measured[ours], *(measured[peer] for peer in peers), strict=True)
        ratio = median(min(others) / mine for mine, *others in rounds)
        print(f"  {ours:20} {' and '.join(peers):52} {ratio:5.2f}  asked {asked:.2f}")


if __name__ == "__main__":
    main()
