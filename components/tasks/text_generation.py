"""Text generation: a decoder that predicts the next token, trained on packed tokens: no rows, no labels.

Tokens are bytes, characters, or a byte-level BPE vocabulary fitted on the training part. All three give back the very
text they were made of.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from components.errors import ArtifactError, SpecError
from components.tasks.base import Preprocessing, RawRows
from components.tasks.config import FeatureConfig, TextConfig
from components.tasks.texts import TextSamples, parse_text

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    import torch
    from tokenizers import Tokenizer

END_OF_TEXT = "<|endoftext|>"
UNKNOWN = "<|unknown|>"
MAX_CHARACTERS = 65_536
"""Size of a character vocabulary at most: more distinct characters are a text for `byte` or `bpe`."""


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
        token = self.tokenizer.token_to_id(END_OF_TEXT)
        assert token is not None, "every tokenizer is made with it"
        return token

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
        from components.tasks.classification import check_inputs

        check_inputs(inputs)
        return {"text": [parse_text(value, index) for index, value in enumerate(inputs)]}

    def parse_file(self, content: bytes) -> RawRows:
        return self.parse_inputs([content])

    def signature(self) -> list[dict[str, Any]]:
        return [{"name": "text", "datatype": "BYTES", "shape": [-1]}]

    def predictions(self, logits: np.ndarray) -> list[dict[str, Any]]:
        raise NotImplementedError("a language model answers by sampling, see components.models.sampling")


def restore(kind: str, tokenizer_json: str) -> LanguagePreprocessing:
    """The preprocessing from plain values."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(tokenizer_json)
    # A text that says END_OF_TEXT must not end a document.
    tokenizer.encode_special_tokens = True
    return LanguagePreprocessing(tokenizer, kind)


class TextGeneration(TextSamples):
    """The next token; the mean loss in nats a token decides."""

    name = "text-generation"
    packed = True
    architectures = ("gpt", "llama")
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


def make_tokenizer(texts: Iterator[str], config: TextConfig) -> Tokenizer:
    """The tokenizer that `data.text.tokenizer` names, fitted on the training texts where it needs them."""
    if config.tokenizer == "byte":
        return byte_tokenizer()
    if config.tokenizer == "character":
        return character_tokenizer(texts)
    return bpe_tokenizer(texts, config.vocab_size)


def bpe_tokenizer(texts: Iterator[str], vocab_size: int) -> Tokenizer:
    """Byte-level BPE (Radford et al. 2019): 256 bytes and merges within words, so that no text is unknown."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=[END_OF_TEXT],
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def byte_tokenizer() -> Tokenizer:
    """One token a byte of UTF-8, and END_OF_TEXT: 257."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={sign: index for index, sign in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(END_OF_TEXT, special=True)])
    return tokenizer


def character_tokenizer(texts: Iterator[str]) -> Tokenizer:
    """One token a character of the training texts, in the order of their code points; others become UNKNOWN.

    Raises:
        SpecError: If there are more than MAX_CHARACTERS.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

    found: set[str] = set()
    for text in texts:
        found.update(text)
    if len(found) > MAX_CHARACTERS:
        raise SpecError(
            f"The training texts hold {len(found)} distinct characters, more than {MAX_CHARACTERS}; set "
            "data.text.tokenizer to byte or bpe.",
            field="data.text.tokenizer",
        )
    vocabulary = {sign: index for index, sign in enumerate(sorted(found))}
    tokenizer = Tokenizer(models.WordLevel({**vocabulary, UNKNOWN: len(vocabulary)}, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens([AddedToken(END_OF_TEXT, special=True)])
    return tokenizer
