"""How well one GPU is used, and the largest GPT that it trains. Needs no Ray. `make bench-gpu`.

First a GPT of 1.3B parameters (GPT-3 XL: 24 layers, 2048 wide, context 2048) in bf16, compiled: tokens a second, and
the model's own FLOPs as a share of what the same card does in products of 8192 x 8192 matrices. Asked for: 50 %. Then
the largest GPT that one card trains, 4096 wide and as many layers as the planner thinks and a few trials confirm, its
optimizer and weights in the host's memory where that helps (that takes DeepSpeed).

It drives the engines of `components.train` on random tokens, as its loop does. A machine needs Python 3.11 or later,
PyTorch 2.11 with CUDA, and numpy, pydantic, safetensors, tokenizers, transformers 5; DeepSpeed (with hjson, py-cpuinfo,
einops, msgpack, ninja) for offload. What it lacks is carried there as wheels:

    pip download --python-version 3.12 --only-binary=:all: --no-deps -d wheels \
        pydantic pydantic-core annotated-types typing-inspection hjson
    DS_BUILD_OPS=0 pip wheel --no-deps -w wheels deepspeed==0.19.8
    python3 -m pip install --no-index --no-deps wheels/*.whl            # there
    PYTHONPATH=. python3 benchmarks/gpu.py                              # there, in the repository

    python benchmarks/gpu.py --device cpu --tiny                        # the same in small, anywhere
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from components.train.plan.search import Option

ASKED_SHARE = 0.5
TRIALS = 4
MOST_LAYERS = 1024
LIMIT_S = 420
GIB = 1 << 30


@dataclass(frozen=True)
class Trial:
    """What is trained for a few steps.

    Attributes:
        batch: Sequences a step.
        changes: Of the spec's `train` section: sharding, offload, checkpointing.
    """

    device: str
    layers: int
    width: int
    head_dim: int
    vocabulary: int
    context: int
    batch: int
    steps: int
    changes: dict[str, Any]

    def model(self) -> dict[str, Any]:
        heads = self.width // self.head_dim
        sizes = {"hidden_size": self.width, "num_hidden_layers": self.layers, "num_attention_heads": heads}
        return {"architecture": "gpt", "dropout": 0.0, **sizes}

    def inputs(self) -> dict[str, int]:
        return {"vocab_size": self.vocabulary, "max_length": self.context}


BILLION = Trial("cuda", 24, 2048, 128, 50304, 2048, 8, 8, {"compile": True})
LARGEST = Trial("cuda", 24, 4096, 128, 50304, 1024, 1, 3, {})
TINY = {"layers": 2, "width": 64, "head_dim": 32, "vocabulary": 256, "context": 64, "batch": 2, "steps": 3}
TINY_MEMORY_BYTES = 2 << 30
TINY_SEARCH = (2, 4)
"""Trials and layers at most."""


def main() -> None:
    parser = argparse.ArgumentParser(description="How well one GPU is used.")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="small sizes, to try the script")
    parser.add_argument("--batch", type=int, help="sequences a step of the first part; the default is 8")
    parser.add_argument("--trial", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.trial:
        print("\n" + json.dumps(run_trial(Trial(**json.loads(options.trial)))))
        return
    import torch

    if options.device == "cuda" and not torch.cuda.is_available():
        sys.exit("torch sees no GPU here; run this on a machine that has one, or with --device cpu --tiny.")
    sizes = {"device": options.device, **(TINY if options.tiny else {})}
    first = replace(BILLION, **sizes, changes={"compile": options.device == "cuda"})
    show_speed(replace(first, batch=options.batch or first.batch))
    show_largest(replace(LARGEST, **sizes), *(TINY_SEARCH if options.tiny else (TRIALS, MOST_LAYERS)))


def show_speed(trial: Trial) -> None:
    """Prints tokens a second and the share of the matrix rate."""
    found = start_trial(trial)
    if "error" in found:
        sys.exit(f"The training of {trial.layers} layers failed: {found['error']}")
    share = found["flops_per_s"] / found["matrix_flops_per_s"]
    print(
        f"{found['name']}, torch {found['torch']}: GPT of {found['parameters'] / 1e9:.3g}B parameters, bf16, batch "
        f"{trial.batch}x{trial.context}: {1000 * found['step_s']:.0f} ms a step, {found['tokens_per_s']:,.0f} "
        "tokens/s, "
        f"{found['flops_per_s'] / 1e12:.4g} TFLOP/s of {found['matrix_flops_per_s'] / 1e12:.4g} measured = {share:.1%} "
        f"(asked {ASKED_SHARE:.0%}), peak {found['peak_bytes'] / GIB:.1f} GiB",
        flush=True,
    )


def show_largest(trial: Trial, trials: int, most: int) -> None:
    """Bisects the number of layers: the planner's guess first, then what really trains."""
    low, high, best = 0, None, None
    layers = planned_layers(trial, most)
    print("layers  parameters  way                                     trained")
    for _ in range(trials):
        option = plan(replace(trial, layers=layers))
        found = start_trial(replace(trial, layers=layers, changes=changes_of(option)))
        told = found.get("error") or f"{found['tokens_per_s']:,.0f} tokens/s, peak {found['peak_bytes'] / GIB:.1f} GiB"
        print(
            f"{layers:6}  {parameters_of(replace(trial, layers=layers)) / 1e9:9.2f}B  {way_of(option):38}  {told}",
            flush=True,
        )
        if "error" in found:
            high = layers
        else:
            low, best = layers, found
        layers = low + max(1, low // 8) if high is None else (low + high) // 2
        if layers in (low, high) or layers == 0:
            break
    if best is None:
        print("None of these trained.")
    else:
        print(f"largest: {low} layers, {best['parameters'] / 1e9:.2f}B parameters")


def planned_layers(trial: Trial, most: int) -> int:
    """The most layers, up to `most`, for which the planner finds a way."""
    low, high = 1, 2
    while plan(replace(trial, layers=high)).fits:
        low, high = high, 2 * high
        if high > most:
            return low
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if plan(replace(trial, layers=middle)).fits else (low, middle)
    return low


def plan(trial: Trial) -> Option:
    """The quickest way that fits this machine, or else the smallest one."""
    from components.models.build import parse_model_config
    from components.train.plan.network import Workload
    from components.train.plan.search import Demand, Machine, Planner

    workload = Workload("text-generation", parse_model_config(trial.model()), trial.inputs(), 0)
    planner = Planner(Demand(workload, "adamw", "bf16", trial.batch, 1), Machine(*memory_of(trial.device)))
    options = planner.options()
    if importlib.util.find_spec("deepspeed") is None:
        options = [option for option in options if not option.setting.sharding.deepspeed]
    return next((option for option in options if option.fits), options[-1])


def memory_of(device: str) -> tuple[Any, int, int | None]:
    """Kind, bytes of the device and of the host; a tiny run pretends to have little."""
    import torch

    if device == "cpu":
        return "cpu", TINY_MEMORY_BYTES, None
    return "cuda", torch.cuda.mem_get_info()[0], os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")


def changes_of(option: Option) -> dict[str, Any]:
    """The fields of `train` that the way stands for."""
    sharding = option.setting.sharding
    offload = {"offload_optimizer": sharding.offload_optimizer, "offload_parameters": sharding.offload_parameters}
    return {"zero": {"stage": sharding.stage, **offload}, "activation_checkpointing": option.setting.checkpointing}


def way_of(option: Option) -> str:
    from components.train.plan.search import name_way

    return name_way(option.setting)


def parameters_of(trial: Trial) -> int:
    from components.models.build import parse_model_config
    from components.train.plan.network import Workload, count_parameters

    return count_parameters(
        Workload("text-generation", parse_model_config(trial.model()), trial.inputs(), 0)
    ).parameters


def start_trial(trial: Trial) -> dict[str, Any]:
    """Trains in a process of its own, which may run out of memory; {"error"} if it did."""
    command = [sys.executable, str(Path(__file__)), "--trial", json.dumps(asdict(trial))]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=LIMIT_S)
    except subprocess.TimeoutExpired:
        return {"error": f"not done after {LIMIT_S} s"}
    if done.returncode == 0:
        return dict(json.loads(done.stdout.splitlines()[-1]))
    said = done.stderr.strip().splitlines()
    return {"error": said[-1][:200] if said else f"ended with {done.returncode}"}


def run_trial(trial: Trial) -> dict[str, Any]:
    """A few steps; the first one compiles and is not counted."""
    import torch

    from components.models.build import build_model, parse_model_config
    from components.models.folder import count_parameters
    from components.tasks import get_task
    from components.train.config import TrainConfig
    from components.train.device import apply_placement, detect_hardware, plan_placement
    from components.train.engine import EngineSettings, build_sharded, make_engine
    from components.train.utilization import describe_work, measure_products

    placement = plan_placement(detect_hardware(), 1, "bf16")
    apply_placement(placement)
    matrix = measure_products(placement.device, "bf16")
    train = TrainConfig.model_validate({"precision": "bf16", "global_batch_size": trial.batch, **trial.changes})
    settings = EngineSettings(train, placement, "bf16", rank=0, world_size=1)
    torch.manual_seed(0)
    with build_sharded(settings), torch.device(placement.device if train.zero.stage == 0 else "cpu"):
        module = build_model(parse_model_config(trial.model()), trial.inputs(), 0)
    if train.activation_checkpointing:
        from components.models.transformer import checkpoint_activations

        checkpoint_activations(module)
    parameters, work = count_parameters(module), describe_work(module)
    assert work is not None, "a GPT is a Transformer"
    engine, task = make_engine(module, settings), get_task("text-generation")
    seconds = []
    for _ in range(trial.steps):
        tokens = torch.randint(trial.vocabulary, (trial.batch, trial.context + 1), device=placement.device)
        started = time.perf_counter()
        engine.module.train()
        loss = task.loss(engine.forward({"input_ids": tokens[:, :-1]}), tokens[:, 1:], 0.0)
        engine.backward(loss)
        engine.step(1e-4)
        wait_for(placement.device)
        seconds.append(time.perf_counter() - started)
    step_s = median(seconds[1:])
    return {
        "name": torch.cuda.get_device_name() if placement.device != "cpu" else "CPU",
        "torch": torch.__version__,
        "parameters": parameters,
        "step_s": step_s,
        "tokens_per_s": trial.batch * trial.context / step_s,
        "flops_per_s": work.flops({"input_ids": tokens[:, :-1]}) / step_s,
        "matrix_flops_per_s": matrix,
        "peak_bytes": peak_bytes(placement.device),
    }


def wait_for(device: str) -> None:
    import torch

    if device != "cpu":
        torch.cuda.synchronize()


def peak_bytes(device: str) -> int:
    """Of the GPU, or of this process."""
    import resource

    import torch

    if device != "cpu":
        return int(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    main()
