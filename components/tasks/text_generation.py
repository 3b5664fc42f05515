"""Text generation: a decoder that predicts the next token, trained on packed tokens: no rows, no labels.

Tokens are bytes, characters, or a byte-level BPE vocabulary fitted on the training part. All three give back the very
text they were made of.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from components.errors import ArtifactError
from components.tasks.base import Preprocessing, RawRows
from components.tasks.config import FeatureConfig
from components.tasks.texts import TextSamples, parse_texts
from components.tasks.tokenizers import END_OF_TEXT, make_tokenizer, read_tokenizer, token_id

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    import torch
    from tokenizers import Tokenizer

    from components.models.predictor import Predictor


@dataclass(frozen=True)
class LanguagePreprocessing(Preprocessing):
    """A tokenizer; END_OF_TEXT stands between documents and is its last token."""

    tokenizer: Tokenizer = field(compare=False, repr=False)
    kind: str = "bpe"
    classes: tuple[str, ...] = ()

    def __reduce__(self) -> tuple:
        return restore, (self.kind, self.tokenizer.to_str())

    @property
    def vocab_size(self) -> int:
        return self.tokenizer.get_vocab_size()

    @property
    def end_of_text(self) -> int:
        """The token that ends a document."""
        return token_id(self.tokenizer, END_OF_TEXT)

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        values = {"task": TextGeneration.name, "tokenizer": self.kind}
        (folder / "preprocessing.json").write_text(json.dumps(values, indent=1, sort_keys=True))
        (folder / "tokenizer.json").write_text(self.tokenizer.to_str())

    def encode(self, rows: RawRows) -> dict[str, list[Any]]:
        return {"input_ids": [encoding.ids for encoding in self.tokenizer.encode_batch_fast(list(rows["text"]))]}

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of tokens; a character that was cut in its middle becomes U+FFFD."""
        return self.tokenizer.decode(list(tokens), skip_special_tokens=True)

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


def restore(kind: str, tokenizer_json: str) -> LanguagePreprocessing:
    """The preprocessing from plain values."""
    return LanguagePreprocessing(read_tokenizer(tokenizer_json), kind)


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
        return restore(config.text.tokenizer, make_tokenizer(texts, config.text).to_str())

    def load(self, folder: Path) -> LanguagePreprocessing:
        try:
            raw = json.loads((folder / "preprocessing.json").read_text())
            return restore(raw["tokenizer"], (folder / "tokenizer.json").read_text())
        except Exception as error:  # `tokenizers` raises bare Exception on a bad file.
            raise ArtifactError(f"{folder} holds no readable tokenizer ({error}).") from error

    def loss(self, logits: torch.Tensor, labels: torch.Tensor, label_smoothing: float) -> torch.Tensor:
        import torch

        return torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), labels.flatten(), label_smoothing=label_smoothing
        )

    def outputs(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Of each window its mean loss in nats and its share of right guesses, float32, shape (B, 2)."""
        import torch

        losses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), labels, reduction="none")
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
