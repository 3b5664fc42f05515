"""Tokenizers of the tasks that write texts: bytes, characters, or a byte-level BPE vocabulary.

All of them give back the very text they were made of. No text can contain a special token: `read_tokenizer`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from components.errors import SpecError
from components.tasks.config import TextConfig

if TYPE_CHECKING:
    from tokenizers import Tokenizer

END_OF_TEXT = "<|endoftext|>"
PADDING = "<|padding|>"
UNKNOWN = "<|unknown|>"
MAX_CHARACTERS = 65_536
"""Size of a character vocabulary at most: more distinct characters are a text for `byte` or `bpe`."""


def read_tokenizer(tokenizer_json: str) -> Tokenizer:
    """A tokenizer from its JSON; a text that says END_OF_TEXT does not end a document."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(tokenizer_json)
    tokenizer.encode_special_tokens = True
    return tokenizer


def token_id(tokenizer: Tokenizer, token: str) -> int:
    """The number of a special token that the tokenizer was made with."""
    number = tokenizer.token_to_id(token)
    assert number is not None, f"every tokenizer is made with {token}"
    return number


def make_tokenizer(texts: Iterator[str], config: TextConfig, specials: Sequence[str] = (END_OF_TEXT,)) -> Tokenizer:
    """The tokenizer that `data.text.tokenizer` names, fitted on the training texts where it needs them.

    Args:
        specials: Tokens that no text contains.
    """
    if config.tokenizer == "byte":
        return byte_tokenizer(specials)
    if config.tokenizer == "character":
        return character_tokenizer(texts, specials)
    return bpe_tokenizer(texts, config.vocab_size, specials)


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
