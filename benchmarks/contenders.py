"""Who trains the same GPT for `speed.py`, each in a process of its own.

    python benchmarks/contenders.py NAME ORDER.json
    torchrun --standalone --nproc-per-node 2 benchmarks/contenders.py ddp ORDER.json

All build the network by the same function, take the same bytes in batches of one shape, minimise the cross entropy of
the next token with fused AdamW and clip the gradient's norm to 1. The last line is the milliseconds a step took on
average, without the first `WARM_UP` steps, which compile and allocate.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import nn

WARM_UP = 1
"""What Penstock's own meter leaves out."""


@dataclass(frozen=True)
class Order:
    """What is trained, and how.

    Attributes:
        dataset: Folder of a Dataset of bytes.
        folder: Scratch.
        tuned: Whether bf16 and compiled; else everybody's own defaults.
        workers: Processes, which share the batch and the cores.
        zero_stage: Penstock's.
    """

    dataset: str
    folder: str
    model: dict[str, Any]
    batch: int
    context: int
    steps: int
    tuned: bool
    workers: int
    zero_stage: int
    learning_rate: float = 1e-3


@dataclass
class Clock:
    """Times the steps after the warm-up."""

    times_s: list[float] = field(default_factory=list)

    def tick(self) -> None:
        """Called after each step."""
        self.times_s.append(time.perf_counter())

    def step_ms(self) -> float:
        timed = self.times_s[WARM_UP - 1 :]
        return 1000 * (timed[-1] - timed[0]) / (len(timed) - 1)


def build_network(order: Order) -> nn.Module:
    """The network that every contender trains."""
    import torch

    from components.models.build import build_model, parse_model_config
    from components.tasks import get_task

    torch.manual_seed(0)
    inputs = get_task("text-generation").load(Path(order.dataset) / "preprocess").model_inputs()
    return build_model(parse_model_config(order.model), {**inputs, "max_length": order.context}, 0)


def with_loss(network: nn.Module) -> nn.Module:
    """The network as `transformers` wants one: {"loss"} of `input_ids` and `labels`, both (B, T)."""
    from torch import nn
    from torch.nn.functional import cross_entropy

    class WithLoss(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, input_ids: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
            logits = self.network(input_ids=input_ids).float()
            return {"loss": cross_entropy(logits.flatten(0, 1), labels.flatten())}

    return WithLoss()


def open_bytes(order: Order) -> np.ndarray:
    """The training split, memory-mapped."""
    from components.artifacts.dataset import open_tokens

    return open_tokens(Path(order.dataset), "train")


def random_windows(order: Order, size: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Endless batches of ids and the ids after them, int64, both (size, T)."""
    import numpy as np
    import torch

    tokens, generator, span = open_bytes(order), np.random.default_rng(0), np.arange(order.context + 1)
    while True:
        starts = generator.integers(len(tokens) - order.context - 1, size=(size, 1))
        window = torch.from_numpy(tokens[starts + span].astype(np.int64))
        yield window[:, :-1], window[:, 1:]


def run_bare(order: Order) -> float:
    """A loop as nanoGPT's."""
    return run_loop(order, with_loss(build_network(order)))


def run_ddp(order: Order) -> float:
    """The same loop in two processes, the gradients averaged by torch."""
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    try:
        return run_loop(order, torch.nn.parallel.DistributedDataParallel(with_loss(build_network(order))))
    finally:
        dist.destroy_process_group()


def run_loop(order: Order, module: nn.Module) -> float:
    import torch

    optimizer = torch.optim.AdamW(module.parameters(), lr=order.learning_rate, weight_decay=0.01, fused=True)
    forward = torch.compile(module) if order.tuned else module
    clock, batches = Clock(), random_windows(order, order.batch // order.workers)
    for _ in range(order.steps + WARM_UP):
        input_ids, labels = next(batches)
        with torch.autocast("cpu", torch.bfloat16, enabled=order.tuned):
            loss = forward(input_ids, labels)["loss"]
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        clock.tick()
    return clock.step_ms()


def run_accelerate(order: Order) -> float:
    """The loop that accelerate's own examples have."""
    import torch
    from accelerate import Accelerator

    options = {"mixed_precision": "bf16", "dynamo_backend": "inductor"} if order.tuned else {}
    accelerator = Accelerator(cpu=True, **options)
    module = with_loss(build_network(order))
    optimizer = torch.optim.AdamW(
        module.parameters(), lr=order.learning_rate, weight_decay=0.01, fused=order.tuned or None
    )
    module, optimizer = accelerator.prepare(module, optimizer)
    clock, batches = Clock(), random_windows(order, order.batch)
    for _ in range(order.steps + WARM_UP):
        loss = module(*next(batches))["loss"]
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        clock.tick()
    return clock.step_ms()


def run_trainer(order: Order) -> float:
    """`transformers`, which clips to 1 and takes fused AdamW by itself."""
    from torch.utils.data import Dataset
    from transformers import Trainer, TrainerCallback, TrainingArguments

    clock = Clock()

    class Windows(Dataset[dict[str, Any]]):
        def __init__(self) -> None:
            self.tokens = open_bytes(order)

        def __len__(self) -> int:
            return (len(self.tokens) - 1) // order.context

        def __getitem__(self, number: int) -> dict[str, Any]:
            window = self.tokens[number * order.context :][: order.context + 1].astype("int64")
            return {"input_ids": window[:-1], "labels": window[1:]}

    class Timing(TrainerCallback):
        def on_step_end(self, *told: Any, **more: Any) -> None:
            clock.tick()

    arguments = TrainingArguments(
        output_dir=order.folder,
        use_cpu=True,
        max_steps=order.steps + WARM_UP,
        per_device_train_batch_size=order.batch,
        learning_rate=order.learning_rate,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        **({"bf16": True, "torch_compile": True} if order.tuned else {}),
    )
    Trainer(with_loss(build_network(order)), arguments, train_dataset=Windows(), callbacks=[Timing()]).train()
    return clock.step_ms()


def run_penstock(order: Order) -> float:
    """What the train stage calls: this process for one worker, Ray Train for two; timed by its own meter."""
    from components.context import Context
    from components.models.build import parse_model_config
    from components.train.config import TrainConfig
    from components.train.job import TrainJob
    from components.train.launch import launch

    folder = Path(order.folder)
    values: dict[str, Any] = {
        "seq_len": order.context,
        "max_steps": order.steps + WARM_UP,
        "global_batch_size": order.batch,
        "learning_rate": order.learning_rate,
        "workers": order.workers,
        "zero": {"stage": order.zero_stage},
        **({"precision": "bf16", "compile": True} if order.tuned else {}),
    }
    job = TrainJob(
        task="text-generation",
        model=parse_model_config(order.model),
        train=TrainConfig.model_validate(values),
        seed=0,
        dataset=Path(order.dataset),
        work_folder=folder / "work",
        key_file=folder / "key",
    )
    result = launch(job, Context("speed", "train", folder, folder, folder / "work"))
    return 1000 * order.batch * order.context / result.facts["tokens_per_s"]


CONTENDERS = {
    "penstock": run_penstock,
    "bare": run_bare,
    "trainer": run_trainer,
    "accelerate": run_accelerate,
    "ddp": run_ddp,
}


def main(name: str, order: str) -> None:
    found = Order(**json.loads(Path(order).read_text()))
    step_ms = CONTENDERS[name](found)
    if os.environ.get("RANK", "0") == "0":
        print(f"\n{step_ms:.3f}", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
