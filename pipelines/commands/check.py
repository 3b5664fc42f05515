"""`penstock check SPEC`: every error at once, with its line and what is allowed."""

from __future__ import annotations

import argparse
import json

from pipelines.commands import parse_overrides
from pipelines.preflight import load_and_check


def command(options: argparse.Namespace) -> int:
    loaded = load_and_check(options.spec, parse_overrides(options.set))
    if options.json:
        print(json.dumps({"status": "ok", "spec": loaded.spec.to_dict(), "spec_sha256": loaded.spec.sha256}))
    else:
        print(f"{loaded.path}: ok ({loaded.spec.task}, {loaded.spec.model.architecture})")
    return 0
