"""Vocabularies of the tasks that write texts: bytes, characters, byte-level BPE, or that of a pretrained network.

The first three give back the very text they were made of.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.errors import ArtifactError, SpecError, first_line
from components.tasks.config import TextConfig

if TYPE_CHECKING:
    from tokenizers import Tokenizer

END_OF_TEXT = "<|endoftext|>"
PADDING = "<|padding|>"
UNKNOWN = "<|unknown|>"
BUILT = ("bpe", "byte", "character")
PRETRAINED = "pretrained"
TOKENIZER_NAME = "tokenizer.json"
MAX_CHARACTERS = 65_536
"""Size of a character vocabulary at most: more distinct characters are a text for `byte` or `bpe`."""


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer and its special tokens. No text can contain one: a text that says END_OF_TEXT does not end there.

    Attributes:
        kind: bpe, byte, character, or PRETRAINED.
        end: The token that ends a text.
        padding: The token that fills up a batch; the same one as `end` where the tokenizer has none.
    """

    tokenizer: Tokenizer = field(compare=False, repr=False)
    kind: str
    end: str = END_OF_TEXT
    padding: str = END_OF_TEXT

    def __reduce__(self) -> tuple:
        # A pickled Tokenizer forgets `encode_special_tokens`, so workers are sent its JSON instead.
        return read_vocabulary, (self.tokenizer.to_str(), self.kind, self.end, self.padding)

    @property
    def size(self) -> int:
        return self.tokenizer.get_vocab_size()

    @property
    def end_id(self) -> int:
        return self.number(self.end)

    @property
    def padding_id(self) -> int:
        return self.number(self.padding)

    def number(self, token: str) -> int:
        """The number of a special token."""
        found = self.tokenizer.token_to_id(token)
        assert found is not None, f"{token} was there when the vocabulary was made"
        return found

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Tokens of each text, without special ones."""
        return [encoding.ids for encoding in self.tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)]

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of tokens; a character that was cut in its middle becomes U+FFFD."""
        return self.tokenizer.decode(list(tokens), skip_special_tokens=True)

    def save(self, folder: Path, **values: Any) -> None:
        """Writes `tokenizer.json`, and `preprocessing.json` with more `values`."""
        folder.mkdir(parents=True, exist_ok=True)
        values |= {"tokenizer": self.kind, "end": self.end, "padding": self.padding}
        (folder / "preprocessing.json").write_text(json.dumps(values, indent=1, sort_keys=True))
        (folder / TOKENIZER_NAME).write_text(self.tokenizer.to_str())


def read_vocabulary(tokenizer_json: str, kind: str, end: str, padding: str) -> Vocabulary:
    """A vocabulary from plain values."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(tokenizer_json)
    tokenizer.encode_special_tokens = True
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return Vocabulary(tokenizer, kind, end, padding)


def load_vocabulary(folder: Path) -> tuple[Vocabulary, dict[str, Any]]:
    """What `Vocabulary.save` wrote, and the values beside it.

    Raises:
        ArtifactError: If it cannot be read.
    """
    try:
        values = json.loads((folder / "preprocessing.json").read_text())
        names = (values["tokenizer"], values["end"], values["padding"])
        return read_vocabulary((folder / TOKENIZER_NAME).read_text(), *names), values
    except Exception as error:  # `tokenizers` raises bare Exception on a bad file.
        raise ArtifactError(f"{folder} holds no readable tokenizer ({error}).") from error


def make_vocabulary(texts: Iterator[str], config: TextConfig, padded: bool) -> Vocabulary:
    """The vocabulary that `data.text.tokenizer` names, fitted on the training texts where it needs them.

    Args:
        padded: Whether it must have a token for padding.
    """
    if config.tokenizer not in BUILT:
        return pretrained_vocabulary(config.tokenizer)
    specials = (END_OF_TEXT, PADDING) if padded else (END_OF_TEXT,)
    if config.tokenizer == "byte":
        tokenizer = byte_tokenizer(specials)
    elif config.tokenizer == "character":
        tokenizer = character_tokenizer(texts, specials)
    else:
        tokenizer = bpe_tokenizer(texts, config.vocab_size, specials)
    return read_vocabulary(tokenizer.to_str(), config.tokenizer, END_OF_TEXT, specials[-1])


def pretrained_vocabulary(source: str) -> Vocabulary:
    """The tokenizer of a pretrained network, from its folder or the hub: `tokenizer.json` and the names beside it.

    Raises:
        SpecError: If there is none, or it has no token that ends a text.
    """
    try:
        content = pretrained_file(source, TOKENIZER_NAME).read_text()
        named = json.loads(pretrained_file(source, "tokenizer_config.json").read_text())
        end, padding = (special_token(named.get(f"{role}_token")) for role in ("eos", "pad"))
        vocabulary = read_vocabulary(content, PRETRAINED, end or "", padding or end or "")
    except Exception as error:  # `tokenizers` raises bare Exception on a bad file, the hub several kinds.
        raise SpecError(
            f"data.text.tokenizer is {source!r}, which is none of {', '.join(BUILT)}, and no folder or reachable hub "
            f"name with a {TOKENIZER_NAME} and a tokenizer_config.json ({first_line(error)}).",
            field="data.text.tokenizer",
        ) from error
    if any(vocabulary.tokenizer.token_to_id(token) is None for token in (vocabulary.end, vocabulary.padding)):
        raise SpecError(
            f"The tokenizer of {source} names no eos_token that it knows, so no text can end; take another one.",
            field="data.text.tokenizer",
        )
    return vocabulary


def pretrained_file(source: str, name: str) -> Path:
    """A file of a folder or the hub; what is on this machine already is taken first."""
    if Path(source).is_dir():
        return Path(source) / name
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(source, name, local_files_only=True))
    except LocalEntryNotFoundError:
        return Path(hf_hub_download(source, name))


def special_token(named: Any) -> str | None:
    """A special token's text, which `transformers` writes as itself or with its settings."""
    return named["content"] if isinstance(named, Mapping) else named


def bpe_tokenizer(texts: Iterator[str], vocab_size: int, specials: Sequence[str]) -> Tokenizer:
    """Byte-level BPE (Radford et al. 2019): 256 bytes and merges within words, so that no text is unknown."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=list(specials),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def byte_tokenizer(specials: Sequence[str]) -> Tokenizer:
    """One token a byte of UTF-8, and the special ones: 257 with END_OF_TEXT alone."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={sign: index for index, sign in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in specials])
    return tokenizer


def character_tokenizer(texts: Iterator[str], specials: Sequence[str]) -> Tokenizer:
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
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in specials])
    return tokenizer
