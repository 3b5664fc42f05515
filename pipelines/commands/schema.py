"""`penstock schema`: the JSON Schema of a spec."""

from __future__ import annotations

import argparse
import json

from pipelines.spec import OPTIONAL, Spec


def command(options: argparse.Namespace) -> int:
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", **Spec.model_json_schema(by_alias=True)}
    for name in OPTIONAL:
        schema["properties"][name].setdefault("anyOf", []).append({"const": False})
    print(json.dumps(schema, indent=None if options.json else 2))
    return 0
