"""What makes a run this run: the resolved spec, the content of its input, and the code that decides results."""

from __future__ import annotations

import hashlib
import json
from functools import cache
from importlib import metadata
from pathlib import Path

RELEASE = "0.1.0"
ROOT = Path(__file__).resolve().parent.parent
DECIDING_LIBRARIES = ("torch", "ray", "deepspeed", "transformers", "tokenizers", "onnxruntime", "onnx", "optuna",
                      "kornia", "scikit-learn", "scipy", "numpy", "pyarrow", "pillow")  # fmt: skip


@cache
def code_digest() -> str:
    """SHA-256 over our source files and the versions of the libraries that decide results: a changed working tree
    can then never be answered with a cached result of the old one."""
    return hashlib.sha256(json.dumps(code_facts(), sort_keys=True).encode()).hexdigest()


@cache
def code_facts() -> dict[str, dict[str, str]]:
    """{"files": SHA-256 by path, "libraries": version by name}: what `code_digest` is made of."""
    paths = sorted([*ROOT.glob("pipelines/**/*.py"), *ROOT.glob("components/**/*.py")])
    return {
        "files": {str(path.relative_to(ROOT)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths},
        "libraries": {library: _version(library) for library in DECIDING_LIBRARIES},
    }


def _version(library: str) -> str:
    try:
        return metadata.version(library).partition("+")[0]
    except metadata.PackageNotFoundError:
        return "absent"


def code_version() -> str:
    """Release and digest, as recorded in every artifact and run."""
    return f"{RELEASE}+{code_digest()[:12]}"


def run_identity(canonical_spec: str, source_digest: str, until: str | None) -> str:
    """SHA-256 that two commands share exactly when the second may continue the first."""
    parts = {"spec": canonical_spec, "source": source_digest, "code": code_digest(), "until": until}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def stage_key(stage: str, config: str, inputs: str, code: str) -> str:
    """Names a stage's artifact and work folder: the same computation has the same key in every run."""
    text = "\0".join((stage, config, inputs, code))
    return hashlib.sha256(text.encode()).hexdigest()[:24]
