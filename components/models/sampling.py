"""Text from a network: one token after the other, each drawn from what it says of the next.

text = continue_text(predictor, "To be", Sampling(max_new_tokens=100, temperature=0.8, top_k=40))     # a decoder
targets = write_targets(predictor, batch, Sampling(temperature=0, num_beams=4))                       # T5
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

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
        num_beams: Beginnings that are kept at each token, of which the likeliest whole is taken; 1 keeps one.
    """

    max_new_tokens: int = 100
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    num_beams: int = 1

    def __post_init__(self) -> None:
        rules = (
            ("max_new_tokens", self.max_new_tokens >= 1, "at least 1"),
            ("temperature", self.temperature >= 0, "0 or more"),
            ("top_k", self.top_k >= 0, "0 (all) or more"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("num_beams", self.num_beams >= 1, "at least 1"),
            ("num_beams", self.num_beams == 1 or self.temperature == 0, "1 where temperature is not 0"),
        )
        for name, holds, allowed in rules:
            if not holds:
                raise RequestError(f"{name} is {getattr(self, name)}; it must be {allowed}.", field=name)


def continue_text(predictor: Predictor, prompt: str, sampling: Sampling) -> str:
    """The prompt and what the model makes of it."""
    from components.models.predictor import TorchPredictor
    from components.tasks.text_generation import LanguagePreprocessing

    preprocessing = predictor.preprocessing
    assert isinstance(preprocessing, LanguagePreprocessing)
    assert isinstance(predictor, TorchPredictor), "such a model is never compressed"
    tokens = list(preprocessing.encode({"text": [prompt]})["input_ids"][0])
    next_logits = NextLogits(predictor.module.decoder, predictor.values["inputs"]["max_length"])
    added = generate(next_logits, tokens, sampling, end=preprocessing.end_of_text)
    return preprocessing.decode([*tokens, *added])


def write_targets(predictor: Predictor, batch: Mapping[str, np.ndarray], sampling: Sampling) -> list[list[int]]:
    """The tokens that an encoder-decoder writes for each source of a batch, by `transformers` with a cache of keys and
    values.

    Args:
        batch: `input_ids` and `attention_mask`, shape (B, T).
    """
    import torch
    from transformers import GenerationConfig

    from components.models.predictor import TorchPredictor

    assert isinstance(predictor, TorchPredictor), "such a model is never compressed"
    network, values = predictor.module.encoder_decoder, predictor.values["inputs"]
    drawn = {"temperature": sampling.temperature, "top_k": sampling.top_k, "top_p": sampling.top_p}
    config = GenerationConfig(
        max_new_tokens=sampling.max_new_tokens,
        num_beams=sampling.num_beams,
        do_sample=sampling.temperature > 0,
        use_cache=True,
        pad_token_id=values["pad_token_id"],
        decoder_start_token_id=values["pad_token_id"],
        eos_token_id=values["eos_token_id"],
        **(drawn if sampling.temperature > 0 else {}),
    )
    inputs = {name: torch.as_tensor(batch[name]) for name in ("input_ids", "attention_mask")}
    with torch.random.fork_rng(devices=[]), torch.inference_mode():
        torch.manual_seed(sampling.seed)
        return network.generate(**inputs, generation_config=config).tolist()


class NextLogits:
    """What a decoder says of the token after a text that grows.

    Keys and values are kept while the text fits into the context. After that every position moves with each token, so
    the last ones are computed again.

    Args:
        decoder: The network of `transformers`.
        context: Tokens it sees at most.
    """

    def __init__(self, decoder: Any, context: int) -> None:
        self.decoder, self.context = decoder, context
        self.known, self.cache = 0, None

    def __call__(self, tokens: list[int]) -> np.ndarray:
        """Logits, float32, shape (V,); `tokens` are those of the call before and more."""
        import torch

        fits = len(tokens) <= self.context
        new = tokens[self.known :] if fits else tokens[-self.context :]
        cache = {"past_key_values": self.cache} if fits else {}
        with torch.inference_mode():
            answer = self.decoder(input_ids=torch.tensor([new]), use_cache=fits, logits_to_keep=1, **cache)
        self.known, self.cache = len(tokens), answer.past_key_values if fits else None
        return answer.logits[0, -1].float().numpy()


def generate(
    next_logits: Callable[[list[int]], np.ndarray], tokens: list[int], sampling: Sampling, end: int | None = None
) -> list[int]:
    """New tokens after `tokens`, up to `end`."""
    import numpy as np

    generator = np.random.default_rng(sampling.seed)
    added: list[int] = []
    while len(added) < sampling.max_new_tokens:
        token = draw(next_logits([*tokens, *added]), sampling, generator)
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
