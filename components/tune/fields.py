"""Which spec fields a sweep may address, and what a chosen value makes of the `model` and `train` sections.

A name is dotted (`train.learning_rate`, `model.hidden_size`) or a whole section (`model`, `train.optimizer`). Fields
that a section does not name keep the spec's values; a `model` of another architecture starts from that one's defaults.
A `model.*` field applies only to the trials whose architecture has it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, get_args

from pydantic import BaseModel, TypeAdapter

from components.models.config import ARCHITECTURES, ModelConfig
from components.train.config import TrainConfig

_MODEL: TypeAdapter[Any] = TypeAdapter(ModelConfig)
_ARCHITECTURES: dict[str, type[BaseModel]] = {
    get_args(member.model_fields["architecture"].annotation)[0]: member for member in get_args(get_args(ModelConfig)[0])
}


def apply_config(model: ModelConfig, train: TrainConfig, config: Mapping[str, Any]) -> tuple[ModelConfig, TrainConfig]:
    """Puts the chosen values of a trial into the spec's sections and validates the result.

    Args:
        config: Dotted name -> value. Sections are applied before the fields below them.

    Raises:
        pydantic.ValidationError: If a section refuses the values.
    """
    sections = merge_config(model, train, config)
    return _MODEL.validate_python(sections["model"]), TrainConfig.model_validate(sections["train"])


def merge_config(model: ModelConfig, train: TrainConfig, config: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The sections with the chosen values in them, every field there and nothing validated."""
    sections = {"model": model.model_dump(), "train": train.model_dump()}
    for name in sorted(config, key=lambda name: (name.count("."), name)):
        section, *path = name.split(".")
        if section == "model":
            sections["model"] = _set_model(sections["model"], path, config[name])
        else:
            sections["train"] = _set(sections["train"], path, config[name])
    known = _ARCHITECTURES.get(sections["model"].get("architecture", ""))
    defaults = {name: field.default for name, field in known.model_fields.items()} if known else {}
    sections["model"] = {**defaults, **sections["model"]}
    return sections


def _set_model(model: dict[str, Any], path: Sequence[str], value: Any) -> dict[str, Any]:
    if list(path) == ["architecture"]:
        path, value = [], {"architecture": value}
    if path:
        return _set(model, path, value) if path[0] in fields_of(model["architecture"]) else model
    if isinstance(value, Mapping) and value.get("architecture", model["architecture"]) != model["architecture"]:
        return dict(value)
    return _set(model, path, value)


def _set(section: Any, path: Sequence[str], value: Any) -> Any:
    """`section` with `value` at `path`; a mapping is merged into what is there."""
    if path:
        below = section if isinstance(section, Mapping) else {}
        return {**below, path[0]: _set(below.get(path[0]), path[1:], value)}
    if isinstance(section, Mapping) and isinstance(value, Mapping):
        return {**section, **{key: _set(section.get(key), [], item) for key, item in value.items()}}
    return value


def fields_of(architecture: Any) -> set[str]:
    """Names of the parameters of an architecture; none if it is unknown."""
    config = _ARCHITECTURES.get(architecture)
    return set(config.model_fields) if config else set()


def field_names(architectures: Sequence[str] = ARCHITECTURES) -> list[str]:
    """Every dotted name that a sweep over models of these architectures may use, sections included."""
    model = [f"model.{field}" for name in architectures for field in _ARCHITECTURES[name].model_fields]
    return ["model", *dict.fromkeys(model), "train", *_nested_names("train", TrainConfig)]


def _nested_names(prefix: str, config: type[BaseModel]) -> Iterator[str]:
    for field, info in config.model_fields.items():
        yield f"{prefix}.{field}"
        for member in (info.annotation, *get_args(info.annotation)):
            if isinstance(member, type) and issubclass(member, BaseModel):
                yield from _nested_names(f"{prefix}.{field}", member)
