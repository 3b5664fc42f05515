"""Rules between sections of the spec: what no single section can know. Light: nothing here opens a file."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from components.errors import PenstockError, SpecError
from components.models.config import TransformerConfig
from components.models.lora import check_lora
from components.serve.keys import is_loopback
from components.tasks import get_task
from components.tasks.tokenizers import BUILT
from components.tune.check import check_tune

if TYPE_CHECKING:
    from pipelines.spec import Spec


def check_rules(spec: Spec) -> list[PenstockError]:
    """Everything that is wrong between sections."""
    rules = (
        _architecture_fits_task,
        _patches_fit,
        _stages_fit,
        _tokens_fit,
        _adapters_fit,
        _layers_fit,
        _space_fits,
        _host_is_guarded,
    )
    return [error for rule in rules for error in rule(spec)]


def _architecture_fits_task(spec: Spec) -> list[PenstockError]:
    allowed = get_task(spec.task).architectures
    if spec.model.architecture in allowed:
        return []
    message = f"model.architecture {spec.model.architecture} does not fit {spec.task}; allowed: {', '.join(allowed)}."
    return [SpecError(message, "model.architecture")]


def _patches_fit(spec: Spec) -> list[PenstockError]:
    size, patch = spec.data.image.size, getattr(spec.model, "patch_size", None)
    if size is None or patch is None or size % patch == 0:
        return []
    return [SpecError(f"model.patch_size {patch} does not divide data.image.size {size}; make it a divisor.",
                      "model.patch_size")]  # fmt: skip


def _stages_fit(spec: Spec) -> list[PenstockError]:
    errors: list[PenstockError] = []
    if spec.registry is not None and spec.evaluate is None:
        errors.append(
            SpecError("register needs the gate of evaluate; set register: false too, or keep evaluate.", "register")
        )
    if spec.deploy is not None and spec.registry is None:
        errors.append(SpecError("deploy needs a registered model; set deploy: false too, or keep register.", "deploy"))
    return errors


def _tokens_fit(spec: Spec) -> list[PenstockError]:
    """What only tasks that write texts have, or a language model alone, and what they have not."""
    task, errors = get_task(spec.task), list[PenstockError]()
    packed = task.packed
    if not packed and spec.train.seq_len is not None:
        errors.append(
            SpecError(f"train.seq_len is for language models; a {spec.task} text is as long as data.text.max_length.",
                      "train.seq_len")
        )  # fmt: skip
    if not task.generative and spec.data.text.tokenizer != "bpe":
        errors.append(SpecError(f"data.text.tokenizer {spec.data.text.tokenizer} is for tasks that write texts; use "
                                "bpe.", "data.text.tokenizer"))  # fmt: skip
    if task.generative and spec.model.pretrained is not None and spec.data.text.tokenizer in BUILT:
        errors.append(SpecError(f"model.pretrained is {spec.model.pretrained!r}, whose weights know its own tokens "
                                f"alone, but data.text.tokenizer is {spec.data.text.tokenizer}; set it to "
                                f"{spec.model.pretrained!r} too.", "data.text.tokenizer"))  # fmt: skip
    if task.target is None and spec.data.text.max_target_length is not None:
        errors.append(SpecError(f"data.text.max_target_length is for text2text-generation, and the task is {spec.task};"
                                " remove it.", "data.text.max_target_length"))  # fmt: skip
    if task.target is None and spec.evaluate is not None and spec.evaluate.num_beams != 1:
        errors.append(SpecError(f"evaluate.num_beams is for text2text-generation, and the task is {spec.task}; remove "
                                "it.", "evaluate.num_beams"))  # fmt: skip
    if task.generative:
        for name, section in (("compress", spec.compress), ("register", spec.registry), ("deploy", spec.deploy)):
            if section is not None:
                errors.append(SpecError(f"{name} is not available for {spec.task} in this version; set {name}: false. "
                                        "penstock predict answers from the trained model.", name))  # fmt: skip
    if packed and spec.data.split.by not in ("random", "position"):
        errors.append(SpecError(f"data.split.by {spec.data.split.by} does not fit {spec.task}; allowed: random "
                                "(by document), position.", "data.split.by"))  # fmt: skip
    return errors


def _adapters_fit(spec: Spec) -> list[PenstockError]:
    error = check_lora(spec.model, spec.train.zero.stage)
    return [] if error is None else [error]


def _layers_fit(spec: Spec) -> list[PenstockError]:
    if not spec.train.activation_checkpointing or isinstance(spec.model, TransformerConfig):
        return []
    return [SpecError(f"train.activation_checkpointing is for Transformers, and {spec.model.architecture} is none; set "
                      "it to false.", "train.activation_checkpointing")]  # fmt: skip


def _space_fits(spec: Spec) -> list[PenstockError]:
    if spec.tune is None:
        return []
    counted = [name for name in ("max_steps", "validate_every_steps") if getattr(spec.train, name) is not None]
    if counted:
        return [SpecError(f"tune counts in epochs, so train.{counted[0]} cannot be set beside it; use train.epochs and "
                          "tune.max_epochs.", f"train.{counted[0]}")]  # fmt: skip
    errors: list[PenstockError] = list(check_tune(spec.tune, spec.model, spec.train, get_task(spec.task)))
    allowed = get_task(spec.task).architectures
    for name in ("model", "model.architecture"):
        item = spec.tune.space.get(name)
        for value in getattr(item, "values", ()):
            named = value.get("architecture") if isinstance(value, dict) else value if "." in name else None
            if named is not None and named not in allowed:
                text = (
                    f"tune.space.{name} names {named}, which does not fit {spec.task}; allowed: {', '.join(allowed)}."
                )
                errors.append(SpecError(text, f"tune.space.{name}"))
    return errors


def _host_is_guarded(spec: Spec) -> list[PenstockError]:
    if spec.deploy is None or is_loopback(spec.deploy.host) or os.environ.get("PENSTOCK_API_KEYS_FILE"):
        return []
    message = (
        f"deploy.host {spec.deploy.host} is not loopback, so requests need API keys; "
        "set PENSTOCK_API_KEYS_FILE to a file with one key a line, or keep 127.0.0.1."
    )
    return [SpecError(message, "deploy.host")]
