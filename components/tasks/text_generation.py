"""Text generation: a decoder that predicts the next token, trained on packed tokens: no rows, no labels.

Tokens are bytes, characters, a byte-level BPE vocabulary fitted on the training part, or those of a pretrained network.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from components.tasks.base import Preprocessing, RawRows
from components.tasks.config import FeatureConfig
from components.tasks.texts import TextSamples, parse_texts
from components.tasks.tokenizers import Vocabulary, load_vocabulary, make_vocabulary

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    import torch

    from components.models.predictor import Predictor


@dataclass(frozen=True)
class LanguagePreprocessing(Preprocessing):
    """A vocabulary; the token that ends a text stands between documents."""

    vocabulary: Vocabulary
    classes: tuple[str, ...] = ()

    @property
    def kind(self) -> str:
        return self.vocabulary.kind

    @property
    def vocab_size(self) -> int:
        return self.vocabulary.size

    @property
    def end_of_text(self) -> int:
        """The token that ends a document."""
        return self.vocabulary.end_id

    def save(self, folder: Path) -> None:
        self.vocabulary.save(folder, task=TextGeneration.name)

    def encode(self, rows: RawRows) -> dict[str, list[Any]]:
        return {"input_ids": self.vocabulary.encode(rows["text"])}

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of tokens."""
        return self.vocabulary.decode(tokens)

    def collate(self, encoded: Mapping[str, Sequence[Any]]) -> dict[str, np.ndarray]:
        import numpy as np

        return {"input_ids": np.asarray(encoded["input_ids"], dtype=np.int64)}

    def model_inputs(self) -> dict[str, int]:
        return {"vocab_size": self.vocab_size}

    def parse_inputs(self, inputs: Sequence[Any]) -> RawRows:
        return {"text": parse_texts(inputs)}

    def parse_file(self, content: bytes) -> RawRows:
        return self.parse_inputs([content])

    def signature(self) -> list[dict[str, Any]]:
        return [{"name": "text", "datatype": "BYTES", "shape": [-1]}]


class TextGeneration(TextSamples):
    """The next token; the mean loss in nats a token decides."""

    name = "text-generation"
    packed = True
    generative = True
    architectures = ("gpt", "llama")
    options = ("max_new_tokens", "temperature", "top_k", "top_p", "seed")
    deciding_metric: ClassVar[str] = "loss"
    mode: ClassVar[Literal["max", "min"]] = "min"
    reported: ClassVar[tuple[str, ...]] = ("perplexity", "accuracy")

    def fit(self, rows: Iterable[pa.Table], classes: Sequence[str], config: FeatureConfig) -> LanguagePreprocessing:
        texts = (text for table in rows for text in table.column("text").to_pylist())
        return LanguagePreprocessing(make_vocabulary(texts, config.text, padded=False))

    def load(self, folder: Path) -> LanguagePreprocessing:
        return LanguagePreprocessing(load_vocabulary(folder)[0])

    def loss(self, logits: torch.Tensor, labels: torch.Tensor, label_smoothing: float) -> torch.Tensor:
        import torch

        return torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), labels.flatten(), label_smoothing=label_smoothing
        )

    def outputs(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Of each window its mean loss in nats and its share of right guesses, float32, shape (B, 2)."""
        import torch

        # Flat, as a transposed view of the logits would be copied: they are the largest tensor of a validation.
        losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
        losses = losses.view(labels.shape)
        right = (logits.argmax(dim=-1) == labels).float()
        return torch.stack([losses.mean(dim=1), right.mean(dim=1)], dim=1)

    def metrics(self, outputs: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        if not len(outputs):
            return {}
        loss, accuracy = (float(value) for value in outputs.astype("float64").mean(axis=0))
        return {"loss": loss, "perplexity": math.exp(min(loss, 700.0)), "accuracy": accuracy}

    def answer(self, predictor: Predictor, rows: RawRows, options: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Each text, continued."""
        from components.models.sampling import Sampling, continue_text

        sampling = Sampling(**options)
        return [{"text": continue_text(predictor, text, sampling)} for text in rows["text"]]
