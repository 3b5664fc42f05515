"""Text from a language model: one token after the other, each drawn from what the network says of the next.

sampler = Sampling(max_new_tokens=100, temperature=0.8, top_k=40)
text = continue_text(predictor, "To be", sampler)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from components.errors import RequestError

if TYPE_CHECKING:
    import numpy as np

    from components.models.predictor import Predictor


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn.

    Attributes:
        max_new_tokens: Tokens to add at most; the end of a document ends the text earlier.
        temperature: Divides the logits; 0 takes the likeliest token every time.
        top_k: Only the k likeliest tokens are drawn from; 0 allows all.
        top_p: Only the likeliest tokens that together reach this probability (Holtzman et al. 2019); 1 allows all.
        seed: Equal seeds and prompts give equal texts.
    """

    max_new_tokens: int = 100
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        rules = (
            ("max_new_tokens", self.max_new_tokens >= 1, "at least 1"),
            ("temperature", self.temperature >= 0, "0 or more"),
            ("top_k", self.top_k >= 0, "0 (all) or more"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
        )
        for name, holds, allowed in rules:
            if not holds:
                raise RequestError(f"{name} is {getattr(self, name)}; it must be {allowed}.", field=name)


def continue_text(predictor: Predictor, prompt: str, sampling: Sampling) -> str:
    """The prompt and what the model makes of it."""
    from components.tasks.text_generation import LanguagePreprocessing

    preprocessing = predictor.preprocessing
    assert isinstance(preprocessing, LanguagePreprocessing)
    tokens = list(preprocessing.encode({"text": [prompt]})["input_ids"][0])
    added = generate(predictor, tokens, sampling, end=preprocessing.end_of_text)
    return preprocessing.decode([*tokens, *added])


def generate(predictor: Predictor, tokens: list[int], sampling: Sampling, end: int | None = None) -> list[int]:
    """New tokens after `tokens`; the network sees as many of the last ones as its context holds."""
    import numpy as np

    generator, context = np.random.default_rng(sampling.seed), predictor.values["inputs"]["max_length"]
    added: list[int] = []
    while len(added) < sampling.max_new_tokens:
        seen = np.array([[*tokens, *added][-context:]], dtype=np.int64)
        token = draw(predictor.logits({"input_ids": seen})[0, -1], sampling, generator)
        if token == end:
            break
        added.append(token)
    return added


def draw(logits: np.ndarray, sampling: Sampling, generator: np.random.Generator) -> int:
    """One token of the logits, shape (V,)."""
    import numpy as np

    if sampling.temperature == 0:
        return int(logits.argmax())
    scaled = logits.astype(np.float64) / sampling.temperature
    order = np.argsort(-scaled, kind="stable")
    probabilities = np.exp(scaled[order] - scaled[order[0]])
    probabilities /= probabilities.sum()
    kept = len(order) if not sampling.top_k else min(sampling.top_k, len(order))
    if sampling.top_p < 1:
        kept = min(kept, int(np.searchsorted(np.cumsum(probabilities), sampling.top_p)) + 1)
    chosen = probabilities[:kept] / probabilities[:kept].sum()
    return int(order[generator.choice(kept, p=chosen)])
