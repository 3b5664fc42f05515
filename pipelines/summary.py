"""What `penstock run` prints at its end: model beside baseline, what compression bought, the gate, the endpoint."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from components.tune.luck import percent
from pipelines.run_folder import RunFolder


def print_summary(result: Mapping[str, Any], folder: RunFolder) -> None:
    """Prints the end of a run for a person, on standard output."""
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True)
    table = metrics_table(result)
    if table is not None:
        console.print(table)
    for line in [*_sweep(result), *_training(result), *_compression(result), *_gate(result), *_release(result)]:
        console.print(line)
    if result["endpoint"]:
        print(how_to_ask(result, folder))


def metrics_table(result: Mapping[str, Any]) -> Any:
    """Test metrics (validation where the test split stayed closed) of model, compressed model and baseline."""
    from rich.table import Table

    model = result["model"]
    if model is None:
        return None
    tested = model["metrics"]["test"] is not None
    rows = {"model": (model, model["metrics"]["test"] if tested else model["metrics"]["validation"])}
    if result["compressed"] and tested:
        rows[f"compressed ({result['compressed']['method']})"] = (
            result["compressed"],
            result["compressed"]["metrics"]["test"],
        )
    if result["baseline"]:
        rows[f"{result['baseline']['kind']} baseline"] = (None, result["baseline"]["metrics"]["test"])
    shown: tuple[str, ...] = ("accuracy", "f1", "precision", "recall")
    if "exact_match" in rows["model"][1]:
        shown = ("exact_match", "bleu", "rougeL", "loss", "accuracy")
    elif "perplexity" in rows["model"][1]:
        shown = ("loss", "perplexity", "bits_per_byte", "accuracy")
    names = [name for name in shown if name in rows["model"][1]]
    table = Table(title=f"{result['run_id']}: {'test' if tested else 'validation'} metrics", title_justify="left")
    for column in ["", *names, "size"]:
        table.add_column(column, justify="left" if not column else "right")
    for label, (facts, metrics) in rows.items():
        values = [f"{metrics[name]:.4f}" if name in (metrics or {}) else "" for name in names]
        table.add_row(label, *values, megabytes(facts["size_bytes"]) if facts else "")
    return table


def megabytes(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:.2f} MB" if size_bytes >= 1e5 else f"{size_bytes / 1e3:.1f} kB"


def _sweep(result: Mapping[str, Any]) -> list[str]:
    sweep = result["sweep"]
    if sweep is None:
        return []
    best = sweep["best_metric"]
    chance = (sweep.get("repeats") or {}).get("chance_only_seemed_best")
    luck = f", chance that it only seemed best {percent(chance)}" if chance is not None else ""
    return [f"sweep       {sweep['trials']} trials, best {best['name']} {best['value']:.4f} on {best['split']}{luck}"]


def _training(result: Mapping[str, Any]) -> list[str]:
    """How fast the final training went, and what was odd about it."""
    facts = (result["model"] or {}).get("training")
    if not facts or facts["steps"] is None:
        return []
    unit = "tokens" if facts["tokens_per_s"] is not None else "samples"
    parts = [f"{facts['steps']:,} steps in {facts['seconds']:.1f} s, {facts[f'{unit}_per_s']:,.0f} {unit}/s"]
    if facts["mfu"] is not None:
        source = "data sheet" if facts["peak_source"].startswith("data sheet") else "measured"
        parts.append(f"{facts['mfu']:.0%} of the {source} peak of {facts['peak_tflops']:.3g} TFLOPS")
    if facts["data_wait"] is not None:
        parts.append(f"{facts['data_wait']:.0%} waiting for data")
    parts += [f"{facts[name]} {name.replace('_', ' ')}" for name in ("loss_spikes", "skipped_steps") if facts[name]]
    if facts["straggler"] is not None:
        parts.append(f"worker {facts['straggler']} was slow")
    if facts["restarts"]:
        times = "once" if facts["restarts"] == 1 else f"{facts['restarts']} times"
        parts.append(f"went on {times} from a checkpoint after a worker was lost")
    return [f"training    {', '.join(parts)}"]


def _compression(result: Mapping[str, Any]) -> list[str]:
    compressed = result["compressed"]
    if compressed is None:
        return []
    latency = compressed["latency_ms"]
    return [
        f"compressed  {compressed['method']}: {compressed['size_ratio']:.2f}x smaller, "
        f"{compressed['speedup']:.2f}x as fast as float32, p50 {latency['p50']:.3f} ms, p99 {latency['p99']:.3f} ms"
    ]


def _gate(result: Mapping[str, Any]) -> list[str]:
    gate = result["gate"]
    if gate is None:
        return []
    word = "[green]passed[/green]" if gate["passed"] else "[red]refused[/red]"
    if gate.get("difference") is None:
        return [f"gate        {word}: {gate.get('reason') or gate['test']}"]
    low, high = gate["interval"]
    return [
        f"gate        {word}: {gate['metric']} {gate['difference']:+.4f} "
        f"(\\[{low:+.4f}, {high:+.4f}]) against a tolerance of {gate['tolerance']}, n = {gate['n']}, {gate['test']}"
    ]


def _release(result: Mapping[str, Any]) -> list[str]:
    registered = result["registered"]
    if registered is None:
        return ["registered  nothing"] if "register" in result["stages"] else []
    return [f"registered  {registered['name']} version {registered['version']}, {registered['alias']}"]


def how_to_ask(result: Mapping[str, Any], folder: RunFolder) -> str:
    """The endpoint, a curl line that works as printed, and how to end it."""
    from components.artifacts.local_store import local_path
    from components.serve.client import curl_example, sample_input

    url = result["endpoint"]["url"]
    model = (result["compressed"] or result["model"])["uri"]
    dataset = result["stages"]["data"]["artifact"]
    lines = [f"\nendpoint    {url}"]
    if "s3://" not in f"{model}{dataset}":
        sample = sample_input(local_path(dataset), local_path(model))
        lines.append(f"ask it      {curl_example(sample, url, Path(folder.path) / 'sample-request.json')}")
    return "\n".join([*lines, "end it      penstock stop"])
