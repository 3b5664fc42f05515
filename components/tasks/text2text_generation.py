"""Text-to-text generation: a source in, a target out (translation, summaries, answers), by an encoder-decoder.

Source and target share one tokenizer. Each ends with the token for the end of a text, unless it was cut: so a network
learns to stop where a target stops and nowhere else.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from components.tasks.base import IGNORED, Preprocessing, RawRows
from components.tasks.config import FeatureConfig
from components.tasks.texts import TextSamples, pad_sequences, parse_texts
from components.tasks.tokenizers import Vocabulary, load_vocabulary, make_vocabulary

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    import torch

    from components.models.predictor import Predictor

MAX_CHARACTERS_PER_TOKEN = 64
"""A text is cut at this many characters a token before it is tokenised: BPE is slow on one endless word."""

ANSWER_ROWS = 32
"""Sources that are answered at once."""


@dataclass(frozen=True)
class Limits:
    """Most tokens of a sample, the one for its end included.

    Attributes:
        max_length: Of the source.
        max_target_length: Of the target.
    """

    max_length: int
    max_target_length: int


@dataclass(frozen=True)
class PairPreprocessing(Preprocessing):
    """Tokenise, cut, pad; one tokenizer for sources and targets."""

    vocabulary: Vocabulary
    limits: Limits
    classes: tuple[str, ...] = ()

    def save(self, folder: Path) -> None:
        self.vocabulary.save(folder, task=Text2TextGeneration.name, **asdict(self.limits))

    def encode(self, rows: RawRows) -> dict[str, list[Any]]:
        encoded = {"input_ids": self.to_tokens(rows["source"], self.limits.max_length)}
        if "target" in rows:
            encoded["labels"] = self.to_tokens(rows["target"], self.limits.max_target_length)
        return encoded

    def to_tokens(self, texts: Sequence[str], max_length: int) -> list[list[int]]:
        """Tokens of each text, at most `max_length`; the end of a text is the last one of those that were not cut."""
        limit, found = max_length * MAX_CHARACTERS_PER_TOKEN, []
        for text, tokens in zip(texts, self.vocabulary.encode([text[:limit] for text in texts]), strict=True):
            whole = len(text) <= limit and len(tokens) < max_length
            found.append([*tokens, self.vocabulary.end_id] if whole else tokens[:max_length])
        return found

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of tokens."""
        return self.vocabulary.decode(tokens)

    def collate(self, encoded: Mapping[str, Sequence[Any]]) -> dict[str, np.ndarray]:
        """`input_ids` and `attention_mask`; where there are targets also `decoder_input_ids`, each target one token
        later, after a padding."""
        input_ids, attention_mask = pad_sequences(encoded["input_ids"], self.vocabulary.padding_id)
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
        if "labels" in encoded:
            before = [[self.vocabulary.padding_id, *target[:-1]] for target in encoded["labels"]]
            inputs["decoder_input_ids"] = pad_sequences(before, self.vocabulary.padding_id)[0]
        return inputs

    def collate_labels(self, encoded: Mapping[str, Sequence[Any]]) -> np.ndarray:
        return pad_sequences(encoded["labels"], IGNORED)[0]

    def count_cut(self, encoded: pa.Table) -> dict[str, int]:
        return {role: count_open(encoded.column(name), self.vocabulary.end_id)
                for role, name in (("source", "input_ids"), ("target", "labels"))}  # fmt: skip

    def model_inputs(self) -> dict[str, int]:
        return {
            "vocab_size": self.vocabulary.size,
            **asdict(self.limits),
            "pad_token_id": self.vocabulary.padding_id,
            "eos_token_id": self.vocabulary.end_id,
        }

    def parse_inputs(self, inputs: Sequence[Any]) -> RawRows:
        return {"source": parse_texts(inputs)}

    def parse_file(self, content: bytes) -> RawRows:
        return self.parse_inputs([content])

    def signature(self) -> list[dict[str, Any]]:
        return [{"name": "source", "datatype": "BYTES", "shape": [-1]}]


def count_open(sequences: pa.ChunkedArray, end: int) -> int:
    """How many lists of tokens do not end with `end`; none of them may be empty."""
    import numpy as np

    count = 0
    for chunk in sequences.chunks:
        last = chunk.offsets.to_numpy()[1:] - 1
        count += int(np.count_nonzero(chunk.values.to_numpy()[last] != end))
    return count


class Text2TextGeneration(TextSamples):
    """A target for each source; the mean loss in nats a target token decides.

    Not exact match, although it costs nothing here: greedy decoding gives the target exactly if every token is the
    likeliest after the true ones before it. But where no target is ever met to the letter, as in translation, it stays
    at 0 and tells no epoch from another.
    """

    name = "text2text-generation"
    feature = "source"
    target = "target"
    generative = True
    architectures = ("t5",)
    options = ("max_new_tokens", "num_beams", "temperature", "top_k", "top_p", "seed")
    deciding_metric: ClassVar[str] = "loss"
    mode: ClassVar[Literal["max", "min"]] = "min"
    reported: ClassVar[tuple[str, ...]] = ("perplexity", "accuracy", "exact_match")

    def fit(self, rows: Iterable[pa.Table], classes: Sequence[str], config: FeatureConfig) -> PairPreprocessing:
        texts = (text for table in rows for role in self.columns for text in table.column(role).to_pylist())
        limits = Limits(config.text.max_length, config.text.max_target_length or config.text.max_length)
        return PairPreprocessing(make_vocabulary(texts, config.text, padded=True), limits)

    def load(self, folder: Path) -> PairPreprocessing:
        vocabulary, values = load_vocabulary(folder)
        return PairPreprocessing(vocabulary, Limits(values["max_length"], values["max_target_length"]))

    def loss(self, logits: torch.Tensor, labels: torch.Tensor, label_smoothing: float) -> torch.Tensor:
        """The mean over samples of each one's mean nats a token.

        All samples weigh the same, so the gradient does not depend on how a step's rows are divided over workers.
        """
        nats = token_losses(logits, labels, label_smoothing)
        return (nats.sum(dim=1) / (labels != IGNORED).sum(dim=1)).mean()

    def outputs(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Of each sample its nats, its tokens, how many were guessed right, and whether all were; shape (B, 4)."""
        import torch

        real = labels != IGNORED
        right = (logits.argmax(dim=-1) == labels) & real
        tokens, hits = real.sum(dim=1), right.sum(dim=1)
        return torch.stack([token_losses(logits, labels).sum(dim=1), tokens, hits, hits == tokens], dim=1).float()

    def metrics(self, outputs: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        """Loss and accuracy over all tokens; exact match is the share of samples that greedy decoding answers with the
        very target, as far as that was not cut."""
        if not len(outputs):
            return {}
        nats, tokens, hits, exact = (float(value) for value in outputs.astype("float64").sum(axis=0))
        loss = nats / tokens
        return {
            "loss": loss,
            "perplexity": math.exp(min(loss, 700.0)),
            "accuracy": hits / tokens,
            "exact_match": exact / len(outputs),
        }

    def answer(self, predictor: Predictor, rows: RawRows, options: Mapping[str, Any]) -> list[dict[str, Any]]:
        """The target that the model writes for each source: the likeliest token each time, unless told otherwise."""
        from components.models.sampling import Sampling, write_targets

        preprocessing = predictor.preprocessing
        assert isinstance(preprocessing, PairPreprocessing)
        defaults = {"max_new_tokens": preprocessing.limits.max_target_length, "temperature": 0.0}
        sampling = Sampling(**{**defaults, **options})
        sources = preprocessing.encode({"source": rows["source"]})["input_ids"]
        # What is drawn in a batch depends on who else is in it; the seed alone shall decide.
        size = ANSWER_ROWS if sampling.temperature == 0 else 1
        batches = (sources[start : start + size] for start in range(0, len(sources), size))
        return [
            {"text": preprocessing.decode(tokens)}
            for batch in batches
            for tokens in write_targets(predictor, preprocessing.collate({"input_ids": batch}), sampling)
        ]


def token_losses(logits: torch.Tensor, labels: torch.Tensor, label_smoothing: float = 0.0) -> torch.Tensor:
    """Nats of each token, 0 where the label is IGNORED; shapes: logits (B, U, V), labels and result (B, U)."""
    import torch

    losses = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1),
        labels.flatten(),
        ignore_index=IGNORED,
        label_smoothing=label_smoothing,
        reduction="none",
    )
    return losses.view(labels.shape)
