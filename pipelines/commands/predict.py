"""`penstock predict TARGET`: asks an endpoint, or a model over files."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from pipelines.model_source import predict_with

SAMPLING = ("max_new_tokens", "temperature", "top_k", "top_p", "seed", "num_beams")
"""Options of a model that writes texts, by their names in `Sampling`."""


def command(options: argparse.Namespace) -> int:
    sampling = {name: getattr(options, name) for name in SAMPLING if getattr(options, name) is not None}
    answer = predict_with(
        options.target, [parse_input(text) for text in options.input], [Path(f) for f in options.files], sampling
    )
    if options.json:
        print(json.dumps(answer))
        return 0
    if answer["predictions"] and "text" in answer["predictions"][0]:
        print("\n---\n".join(prediction["text"] for prediction in answer["predictions"]))
        return 0
    names = [text[:60] for text in options.input] + list(options.files)
    for name, prediction in zip(names, answer["predictions"], strict=True):
        score = f"  {prediction['score']:.4f}" if "score" in prediction else ""
        print(f"{prediction.get('label', prediction)}{score}  {name}")
    return 0


def parse_input(text: str) -> Any:
    """A nested list or a quoted string is JSON; anything else is the text itself."""
    if text.lstrip()[:1] in ("[", '"'):
        try:
            return json.loads(text)
        except ValueError:
            return text
    return text
