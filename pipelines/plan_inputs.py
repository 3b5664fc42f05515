"""What a plan needs to know of a spec, and what it has to assume because the data is not read."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from components.tasks import get_task
from components.train.plan.network import Workload
from components.train.plan.samples import estimate_samples
from pipelines.spec import Spec

DEFAULT_SEQ_LEN = 256
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
    """Workers of the spec; the most where it names a range."""
    workers: Any = spec.train.workers
    return workers if isinstance(workers, int) else workers.max


def make_workload(spec: Spec, assume: Assumptions) -> Workload:
    """Network and sample, from the spec alone."""
    if get_task(spec.task).modality == "text":
        return Workload(spec.model, text_inputs(spec, assume), class_count(spec, assume))
    if spec.data.source == "builtin://digits":
        return Workload(spec.model, DIGITS, 10)
    size, channels = spec.data.image.size, spec.data.image.channels
    if size is None:
        assume(f"images of {DEFAULT_IMAGE_SIZE} x {DEFAULT_IMAGE_SIZE} pixels; data.image.size says otherwise")
    if channels is None:
        assume(f"{DEFAULT_CHANNELS} channels; data.image.channels says otherwise")
    inputs = {"image_size": size or DEFAULT_IMAGE_SIZE, "channels": channels or DEFAULT_CHANNELS}
    return Workload(spec.model, inputs, class_count(spec, assume))


def text_inputs(spec: Spec, assume: Assumptions) -> dict[str, int]:
    """A decoder's samples have train.seq_len tokens, a classifier's data.text.max_length at most."""
    text = spec.data.text
    if spec.model.architecture not in ("gpt", "llama"):
        return {"vocab_size": text.vocab_size, "max_length": text.max_length, "pad_token_id": 0}
    seq_len = getattr(spec.train, "seq_len", None)
    if seq_len is None:
        assume(f"{DEFAULT_SEQ_LEN} tokens a sample; train.seq_len says otherwise")
    return {"vocab_size": text.vocab_size, "max_length": seq_len or DEFAULT_SEQ_LEN}


def class_count(spec: Spec, assume: Assumptions) -> int:
    if spec.model.architecture in ("gpt", "llama"):
        return 0
    assume(f"{DEFAULT_CLASSES} classes; the data is not read")
    return DEFAULT_CLASSES


def count_samples(spec: Spec, workload: Workload, rows: int | None, assume: Assumptions) -> int | None:
    """Samples of the whole training; None where they cannot be known without reading the data.

    Args:
        rows: Of the training split, where somebody said so.
    """
    steps = getattr(spec.train, "steps", None) or getattr(spec.train, "max_steps", None)
    if rows is None and steps is not None:
        return steps * spec.train.global_batch_size
    split = spec.data.split
    share = 1 - split.validation - split.test
    if rows is not None:
        return rows * spec.train.epochs
    if spec.data.source == "builtin://digits":
        return int(DIGITS_ROWS * share) * spec.train.epochs
    found = estimate_samples(Path(spec.data.source), workload.tokens if workload.is_decoder else None)
    if found is None:
        assume("the number of samples is not known; state that of the training split with --samples")
        return None
    assume(f"about {found:,} samples in {spec.data.source}, from its size")
    return int(found * share) * spec.train.epochs
