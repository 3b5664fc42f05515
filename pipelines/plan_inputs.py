"""What a plan needs to know of a spec, and what it has to assume because the data is not read."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from components.tasks import get_task
from components.tasks.tokenizers import BUILT, pretrained_vocabulary
from components.train.plan.network import Workload
from components.train.plan.samples import estimate_samples
from components.train.session import SEQ_LEN
from pipelines.spec import Spec

BYTE_TOKENS = 257
CHARACTERS = 100
BYTES_PER_BPE_TOKEN = 4
"""Of English text, about."""
DEFAULT_IMAGE_SIZE = 64
DEFAULT_CHANNELS = 3
DEFAULT_CLASSES = 10
DIGITS = {"image_size": 8, "channels": 1}
DIGITS_ROWS = 1797


@dataclass
class Assumptions:
    """What the plan rests on that nobody said."""

    lines: list[str] = field(default_factory=list)

    def __call__(self, line: str) -> None:
        self.lines.append(line)


def worker_count(spec: Spec) -> int:
    """Workers of the spec; the fewest where it names a range: each then holds the most."""
    return spec.train.min_workers or spec.train.workers


def make_workload(spec: Spec, assume: Assumptions) -> Workload:
    """Network and sample, from the spec alone."""
    if get_task(spec.task).modality == "text":
        return Workload(spec.task, spec.model, text_inputs(spec, assume), class_count(spec, assume))
    if spec.data.source == "builtin://digits":
        return Workload(spec.task, spec.model, DIGITS, 10)
    size, channels = spec.data.image.size, spec.data.image.channels
    if size is None:
        assume(f"images of {DEFAULT_IMAGE_SIZE} x {DEFAULT_IMAGE_SIZE} pixels; data.image.size says otherwise")
    if channels is None:
        assume(f"{DEFAULT_CHANNELS} channels; data.image.channels says otherwise")
    inputs = {"image_size": size or DEFAULT_IMAGE_SIZE, "channels": channels or DEFAULT_CHANNELS}
    return Workload(spec.task, spec.model, inputs, class_count(spec, assume))


def text_inputs(spec: Spec, assume: Assumptions) -> dict[str, int]:
    """A decoder's samples have train.seq_len tokens, all others data.text.max_length at most, and a target's."""
    text, task = spec.data.text, get_task(spec.task)
    if text.tokenizer == "character":
        assume(f"{CHARACTERS} different characters; the text is not read")
    if text.tokenizer in BUILT:
        words = {"byte": BYTE_TOKENS, "character": CHARACTERS, "bpe": text.vocab_size}[text.tokenizer]
    else:
        words = pretrained_vocabulary(text.tokenizer).size
    if task.packed:
        return {"vocab_size": words, "max_length": spec.train.seq_len or SEQ_LEN}
    sizes = {"vocab_size": words, "max_length": text.max_length, "pad_token_id": 0}
    if task.target is None:
        return sizes
    return {**sizes, "max_target_length": text.max_target_length or text.max_length, "eos_token_id": 1}


def class_count(spec: Spec, assume: Assumptions) -> int:
    if get_task(spec.task).generative:
        return 0
    assume(f"{DEFAULT_CLASSES} classes; the data is not read")
    return DEFAULT_CLASSES


def sample_bytes(spec: Spec, workload: Workload) -> int | None:
    """Bytes of text that make a language model's sample; None where a row is a sample."""
    if not workload.is_decoder:
        return None
    return workload.tokens * (1 if spec.data.text.tokenizer in ("byte", "character") else BYTES_PER_BPE_TOKEN)


def count_samples(spec: Spec, workload: Workload, rows: int | None, assume: Assumptions) -> int | None:
    """Samples of the whole training; None where they cannot be known without reading the data.

    Args:
        rows: Of the training split, where somebody said so.
    """
    if spec.train.max_steps is not None:
        return spec.train.max_steps * spec.train.global_batch_size
    split = spec.data.split
    share = 1 - split.validation - split.test
    if rows is not None:
        return rows * spec.train.epochs
    if spec.data.source == "builtin://digits":
        return int(DIGITS_ROWS * share) * spec.train.epochs
    found = estimate_samples(Path(spec.data.source), sample_bytes(spec, workload))
    if found is None:
        assume("the number of samples is not known; state that of the training split with --samples")
        return None
    assume(f"about {found:,} samples in {spec.data.source}, from its size")
    return int(found * share) * spec.train.epochs
