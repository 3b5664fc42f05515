"""`penstock plan SPEC`: memory of each way to train, the one to take and why, time and cost."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from components.errors import SpecError
from pipelines.commands import parse_overrides

if TYPE_CHECKING:
    from rich.console import Console

    from pipelines.plan import PlanOptions

UNITS = {
    "": 1,
    "K": 10**3,
    "M": 10**6,
    "G": 10**9,
    "T": 10**12,
    "KI": 1 << 10,
    "MI": 1 << 20,
    "GI": 1 << 30,
    "TI": 1 << 40,
}
COLUMNS = {
    "weights": "weights",
    "gradients": "grads",
    "optimizer": "optim",
    "activations": "activ",
    "buffers": "buffers",
    "other": "other",
    "total": "total",
}
"""Sizes of an option, and what they are called above the table."""
AWAY = ("host", "nvme")
LEAST_WIDTH = 144


def command(options: argparse.Namespace) -> int:
    from pipelines.plan import make_plan
    from pipelines.spec import load_spec

    plan = make_plan(load_spec(options.spec, parse_overrides(options.set)).spec, read_options(options))
    if options.json:
        print(json.dumps(plan))
    else:
        print_plan(plan)
    return 0


def read_options(options: argparse.Namespace) -> PlanOptions:
    """The typed options.

    Raises:
        SpecError: If a number is not positive, or an option needs another.
    """
    from components.train.plan.speed import DEFAULT_MFU
    from pipelines.plan import PlanOptions

    for name in ("gpus", "nodes", "peak_tflops", "mfu", "price", "samples"):
        value = getattr(options, name)
        if value is not None and value <= 0:
            raise SpecError(f"--{name.replace('_', '-')} is {value}; give a number above 0.")
    if options.gpus is None and (options.nodes > 1 or options.gpu_memory or options.host_memory or options.gpu):
        raise SpecError("--nodes, --gpu, --gpu-memory and --host-memory describe the machines of --gpus; give it too.")
    return PlanOptions(
        gpus=options.gpus,
        nodes=options.nodes,
        gpu=options.gpu,
        gpu_memory=parse_size("--gpu-memory", options.gpu_memory),
        host_memory=parse_size("--host-memory", options.host_memory),
        nvme=parse_size("--nvme", options.nvme),
        peak_tflops=options.peak_tflops,
        mfu=options.mfu or DEFAULT_MFU,
        price=options.price,
        samples=options.samples,
        probe=options.probe,
    )


def parse_size(name: str, text: str | None) -> int | None:
    """Bytes of `80GiB`, `80GB` or a plain number.

    Raises:
        SpecError: If it is none of these.
    """
    if text is None:
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]I?)?B?", text.strip().upper())
    if match is None or float(match.group(1)) == 0:
        raise SpecError(f"{name} is {text!r}; give a size such as 80GiB.")
    return int(float(match.group(1)) * UNITS[match.group(2) or ""])


def print_plan(plan: Mapping[str, Any]) -> None:
    """Prints a plan for a person, on standard output."""
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True)
    console.width = max(console.width, LEAST_WIDTH)
    model, machine, batch = plan["model"], plan["machine"], plan["batch"]
    console.print(
        f"{plan['name']}: {model['architecture']}, {model['parameters']:,} parameters, {model['optimizer']}, "
        f"{model['precision']}; {machine['workers']} x {machine['gpu'] or machine['device']} with "
        f"{in_gib(machine['memory_bytes'])} GiB, batch {batch['global_batch_size']} = {machine['workers']} x "
        f"{batch['samples_per_worker']} samples of {batch['tokens_per_sample']:,} tokens"
    )
    console.print(modules_table(model))
    console.print(options_table(plan))
    print_choice(console, plan)


def modules_table(model: Mapping[str, Any]) -> Any:
    from rich.table import Table

    table = Table(title="parameters by module", title_justify="left", box=None)
    for column in ("module", "copies", "parameters", "share"):
        table.add_column(column, justify="left" if column == "module" else "right")
    for module in model["modules"]:
        share = module["parameters"] / model["parameters"]
        table.add_row(module["name"], str(module["copies"]), f"{module['parameters']:,}", f"{share:.1%}")
    return table


def options_table(plan: Mapping[str, Any]) -> Any:
    from rich.table import Table

    rows = [*((option["name"], option) for option in plan["options"]), ("as written", plan["as_written"])]
    columns = [*COLUMNS, *(name for name in AWAY if any(option["bytes"][name] for _, option in rows))]
    table = Table(title="GiB a worker", title_justify="left", box=None)
    for column in ("way to train", "batch", *(COLUMNS.get(name, name) for name in columns), "fits"):
        table.add_column(column, justify="left" if column == "way to train" else "right", no_wrap=True)
    for label, option in rows:
        chosen = plan["chosen"] is not None and label == plan["chosen"]["name"]
        batch = f"{option['micro_batch_size']} x {option['gradient_accumulation_steps']}"
        sizes = [in_gib(shown_bytes(option)[name]) for name in columns]
        table.add_row(label, batch, *sizes, "yes" if option["fits"] else "no", style="bold" if chosen else None)
    return table


def shown_bytes(option: Mapping[str, Any]) -> dict[str, int]:
    sizes = option["bytes"]
    return {**sizes, "other": sizes["overhead"] + sizes["process"], "total": sizes["device"]}


def print_choice(console: Console, plan: Mapping[str, Any]) -> None:
    for option in plan["options"]:
        if not option["fits"]:
            console.print(f"no          {option['name']}: {option['reason']}")
    chosen = plan["chosen"]
    if chosen is None:
        console.print("chosen      nothing fits; take more workers, or a smaller model or sample")
    else:
        changes = ", ".join(f"{name}={value}" for name, value in chosen["changes"].items())
        console.print(f"chosen      {chosen['name']}: {chosen['why']}")
        console.print(f"set         {changes}")
    if plan["pace"]:
        console.print(f"pace        {pace_line(plan['pace'])}")
    for line in plan["assumed"]:
        console.print(f"assumed     {line}")


def pace_line(pace: Mapping[str, Any]) -> str:
    parts = [f"{pace['tokens_per_s']:,.0f} tokens/s", f"{pace['step_s']:.3g} s a step"]
    if pace["hours"] is not None:
        parts.append(f"{pace['hours']:,.2f} h for {pace['samples']:,} samples")
    if pace["cost"] is not None:
        parts.append(f"cost {pace['cost']:,.2f}")
    return ", ".join(parts)


def in_gib(size_bytes: int) -> str:
    """`0.05`, `1.50`, `262.8`; nothing is `-`."""
    size = size_bytes / (1 << 30)
    return "-" if size_bytes == 0 else f"{size:.1f}" if size >= 100 else f"{size:.2f}"
