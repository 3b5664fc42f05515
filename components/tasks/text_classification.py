"""Text classification: a text in, one class out. Tokens come from a BPE vocabulary fitted on the training split."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.errors import ArtifactError, RequestError
from components.tasks.base import Preprocessing, RawRows
from components.tasks.classification import Classification, ClassPreprocessing
from components.tasks.config import FeatureConfig, TextConfig
from components.tasks.texts import TextSamples, pad_sequences, parse_texts

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from tokenizers import Tokenizer
    from tokenizers.normalizers import Normalizer

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
PAD_TOKEN_ID = 0
SPACE_MARK = "\u2581"
MIN_ALPHABET = 8
MAX_CHARACTERS_PER_TOKEN = 64
"""A text is cut at this many characters a token before it is tokenised: BPE is slow on one endless word."""


@dataclass(frozen=True)
class TextPreprocessing(ClassPreprocessing):
    """Cut, tokenise, pad. `max_length` counts tokens, [CLS] and [SEP] included."""

    classes: tuple[str, ...]
    max_length: int
    tokenizer: Tokenizer = field(compare=False, repr=False)

    def __reduce__(self) -> tuple:
        # A pickled Tokenizer forgets `encode_special_tokens`, so workers are sent its JSON instead.
        return restore, (self.classes, self.max_length, self.tokenizer.to_str())

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        values = {"task": TextClassification.name, "classes": self.classes, "max_length": self.max_length}
        (folder / "preprocessing.json").write_text(json.dumps(values, indent=1, sort_keys=True))
        (folder / "tokenizer.json").write_text(self.tokenizer.to_str())

    def encode(self, rows: RawRows) -> dict[str, list[Any]]:
        limit = self.max_length * MAX_CHARACTERS_PER_TOKEN
        encodings = self.tokenizer.encode_batch_fast([text[:limit] for text in rows["text"]])
        return {"input_ids": [encoding.ids for encoding in encodings]}

    def collate(self, encoded: Mapping[str, Sequence[Any]]) -> dict[str, np.ndarray]:
        input_ids, attention_mask = pad_sequences(encoded["input_ids"], PAD_TOKEN_ID)
        return {"input_ids": input_ids, "attention_mask": attention_mask}

    def model_inputs(self) -> dict[str, int]:
        vocab_size = self.tokenizer.get_vocab_size()
        return {"vocab_size": vocab_size, "max_length": self.max_length, "pad_token_id": PAD_TOKEN_ID}

    def parse_inputs(self, inputs: Sequence[Any]) -> RawRows:
        return {"text": parse_texts(inputs)}

    def parse_file(self, content: bytes) -> RawRows:
        try:
            text = content.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise RequestError("The file is not UTF-8 text.", field="file") from error
        if not text.strip():
            raise RequestError("The file holds no text.", field="file")
        return {"text": [text]}

    def signature(self) -> list[dict[str, Any]]:
        return [{"name": "text", "datatype": "BYTES", "shape": [-1]}]


def restore(classes: Sequence[str], max_length: int, tokenizer_json: str) -> TextPreprocessing:
    """The preprocessing from plain values."""
    from tokenizers import Tokenizer

    return TextPreprocessing(
        tuple(classes), max_length, prepare_tokenizer(Tokenizer.from_str(tokenizer_json), max_length)
    )


class TextClassification(TextSamples, Classification):
    """One class a text."""

    name = "text-classification"
    architectures = ("bert", "text-cnn", "lstm", "gru")

    def fit(self, rows: Iterable[pa.Table], classes: Sequence[str], config: FeatureConfig) -> Preprocessing:
        tokenizer = train_tokenizer(rows, config.text)
        return restore(classes, config.text.max_length, tokenizer.to_str())

    def load(self, folder: Path) -> Preprocessing:
        try:
            raw = json.loads((folder / "preprocessing.json").read_text())
            return restore(raw["classes"], int(raw["max_length"]), (folder / "tokenizer.json").read_text())
        except Exception as error:  # `tokenizers` raises bare Exception on a bad file.
            raise ArtifactError(f"{folder} holds no readable text preprocessing ({error}).") from error


def texts_of(rows: Iterable[pa.Table], config: TextConfig) -> Iterator[str]:
    """The texts, cut, one after the other: they may be more than memory holds."""
    limit = config.max_length * MAX_CHARACTERS_PER_TOKEN
    return (text[:limit] for table in rows for text in table.column("text").to_pylist())


def train_tokenizer(rows: Iterable[pa.Table], config: TextConfig) -> Tokenizer:
    """Byte-pair encoding within words and punctuation marks (Sennrich et al. 2016, https://arxiv.org/abs/1508.07909).

    Each word and punctuation mark begins with SPACE_MARK, so a piece inside a word is another token. The same texts in
    any order give the same vocabulary.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers

    # No `continuing_subword_prefix`: with it, `tokenizers` 0.23 numbers the letters in the order of a hash map.
    tokenizer = Tokenizer(models.BPE(unk_token="[UNK]"))
    tokenizer.normalizer = make_normalizer(config)
    marker = pre_tokenizers.Metaspace(prepend_scheme="always", split=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.BertPreTokenizer(), marker])
    normalize = tokenizer.normalizer.normalize_str
    alphabet = choose_alphabet((normalize(text) for text in texts_of(rows, config)), config.vocab_size)
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocab_size,
        min_frequency=2,
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        special_tokens=list(SPECIAL_TOKENS),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts_of(rows, config), trainer)
    specials = [(token, SPECIAL_TOKENS.index(token)) for token in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=specials)
    return tokenizer


def make_normalizer(config: TextConfig) -> Normalizer:
    """Unicode NFC, white space as single spaces, and lower case if asked for."""
    from tokenizers import Regex, normalizers

    case = [normalizers.Lowercase()] if config.lowercase else []
    return normalizers.Sequence([normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), *case])


def choose_alphabet(texts: Iterable[str], vocab_size: int) -> list[str]:
    """The commonest characters, at most a quarter of the vocabulary (a CJK corpus would fill it with single signs).

    Chosen here and not by `limit_alphabet`, which breaks ties by chance; the other characters become [UNK].
    """
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(text)
    counts.pop(" ", None)
    common = sorted(counts, key=lambda character: (-counts[character], character))
    return [SPACE_MARK, *common[: max(vocab_size // 4, MIN_ALPHABET)]]


def prepare_tokenizer(tokenizer: Tokenizer, max_length: int) -> Tokenizer:
    """Sets what a saved tokenizer does not keep: a text that says "[PAD]" must not become the padding token."""
    tokenizer.encode_special_tokens = True
    tokenizer.enable_truncation(max_length)
    return tokenizer
