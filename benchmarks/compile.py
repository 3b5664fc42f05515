"""What `train.compile` brings on this machine: a small GPT, written and generated code in turn.

make bench-compile
"""

from __future__ import annotations

import statistics
import tempfile
import time

STEPS = 12
ROUNDS = 3
GPT = {"architecture": "gpt", "hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4, "dropout": 0.0}
INPUTS = {"vocab_size": 96, "max_length": 64}
BATCH = 12


def main() -> None:
    import os

    with tempfile.TemporaryDirectory() as folder:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder
        for precision in ("fp32", "bf16"):
            measure(precision)


def measure(precision: str) -> None:
    """Prints milliseconds a step of both ways, each in rounds that alternate."""
    ways = {wanted: make_step(precision, wanted) for wanted in (False, True)}
    start = time.perf_counter()
    ways[True]()
    first_s = time.perf_counter() - start
    ways[False]()
    seconds: dict[bool, list[float]] = {False: [], True: []}
    for _ in range(ROUNDS):
        for wanted, step in ways.items():
            for _ in range(STEPS):
                start = time.perf_counter()
                step()
                seconds[wanted].append(time.perf_counter() - start)
    written, generated = (1000 * statistics.median(seconds[wanted]) for wanted in (False, True))
    print(f"{precision}: written {written:.1f} ms a step, generated {generated:.1f} ms ({written / generated:.2f}x); "
          f"generating took {first_s:.0f} s")  # fmt: skip


def make_step(precision, wanted):  # type: ignore[no-untyped-def]
    """A training step of a GPT of its own."""
    import torch

    from components.models.build import build_model, parse_model_config
    from components.tasks import get_task
    from components.train.config import TrainConfig
    from components.train.device import apply_placement, detect_hardware, plan_placement
    from components.train.engine import EngineSettings, make_engine

    placement = plan_placement(detect_hardware(), 1, precision)
    apply_placement(placement)
    config = TrainConfig.model_validate({"compile": wanted, "precision": precision, "global_batch_size": BATCH})
    torch.manual_seed(0)
    module = build_model(parse_model_config(GPT), INPUTS, INPUTS["vocab_size"])
    engine = make_engine(module, EngineSettings(config, placement, precision, rank=0, world_size=1))
    tokens = torch.randint(INPUTS["vocab_size"], (BATCH, INPUTS["max_length"] + 1)).to(placement.device)
    task = get_task("text-generation")

    def step() -> None:
        logits = engine.forward({"input_ids": tokens[:, :-1]})
        engine.backward(task.loss(logits, tokens[:, 1:], 0.0))
        engine.step(1e-3)
        if placement.device != "cpu":
            torch.cuda.synchronize()

    return step


if __name__ == "__main__":
    main()
