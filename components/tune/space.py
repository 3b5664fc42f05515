"""Which spec fields a sweep may address, and what a chosen value makes of the `model` and `train` sections.

A name is dotted (`train.learning_rate`, `model.hidden_size`) or a whole section (`model`, `train.optimizer`). Fields
that a section does not name keep the spec's values; a `model` of another architecture starts from that one's defaults.
A `model.*` field applies only to the trials whose architecture has it.
"""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, get_args

from pydantic import BaseModel, TypeAdapter, ValidationError

from components.errors import SpecError
from components.models.config import ARCHITECTURES, ModelConfig
from components.train.config import TrainConfig
from components.tune.config import Choice, Grid, IntUniform, SpaceItem

Space = Mapping[str, SpaceItem]

SECTIONS = ("model", "train")
FIXED_FIELDS = ("train.epochs", "train.workers", "train.zero")
"""The final training takes these from the spec, so a sweep over them would be about nothing."""
MAX_COMBINATIONS = 300
"""Combinations tried before a value is refused by a rule between fields: `check` must answer at once."""

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
    sections = {"model": model.model_dump(), "train": train.model_dump()}
    for name in sorted(config, key=lambda name: (name.count("."), name)):
        section, *path = name.split(".")
        if section == "model":
            sections["model"] = _set_model(sections["model"], path, config[name])
        else:
            sections["train"] = _set(sections["train"], path, config[name])
    return _MODEL.validate_python(sections["model"]), TrainConfig.model_validate(sections["train"])


def _set_model(model: dict[str, Any], path: Sequence[str], value: Any) -> dict[str, Any]:
    if list(path) == ["architecture"]:
        path, value = [], {"architecture": value}
    if path:
        return _set(model, path, value) if path[0] in _fields_of(model["architecture"]) else model
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


def _fields_of(architecture: Any) -> set[str]:
    config = _ARCHITECTURES.get(architecture)
    return set(config.model_fields) if config else set()


def check_space(space: Space, model: ModelConfig, train: TrainConfig) -> list[SpecError]:
    """Every name that is no field a sweep can address, and every value that its section refuses."""
    architectures = _reachable_architectures(space, model)
    problems = {
        name: _name_problem(name, architectures)
        or _fixed_problem(name, item)
        or _field_problem(name, item, model, train)
        for name, item in space.items()
    }
    # Rules between fields are asked of sound entries only, else one bad entry would make all others look bad.
    sound = {name: _values(space[name]) for name, problem in problems.items() if problem is None}
    problems |= {name: _rule_problem(name, sound, model, train) for name in sound}
    return [SpecError(problem, field=f"tune.space.{name}") for name, problem in problems.items() if problem]


def _reachable_architectures(space: Space, model: ModelConfig) -> list[str]:
    """The architectures that some trial may have."""
    named = [value.get("architecture") for value in _values(space.get("model")) if isinstance(value, Mapping)]
    named += _values(space.get("model.architecture"))
    known = [name for name in named if name in _ARCHITECTURES]
    return list(dict.fromkeys(known)) or [model.architecture]


def _values(item: SpaceItem | None) -> list[Any]:
    """Values to check: all of a list; of a range its ends and a point inside, which a whole-number field refuses."""
    if item is None:
        return []
    if isinstance(item, Choice | Grid):
        return list(item.choice if isinstance(item, Choice) else item.grid)
    low, high = next(iter(item.model_dump().values()))
    return [low, high] if isinstance(item, IntUniform) else [low, high, float(f"{low + 0.382 * (high - low):.3g}")]


def _name_problem(name: str, architectures: Sequence[str]) -> str | None:
    section, *path = name.split(".")
    if section not in SECTIONS:
        allowed = field_names(architectures)
        return f"{name} cannot be searched: a sweep takes fields of `model` and `train`{_suggest(name, allowed)}"
    if name in field_names(architectures):
        return None
    if section == "model" and len(path) == 1 and any(path[0] in _fields_of(known) for known in ARCHITECTURES):
        owners = ", ".join(known for known in ARCHITECTURES if path[0] in _fields_of(known))
        return f"{name} is no field of {', '.join(architectures)}; it belongs to {owners}."
    siblings = [known for known in field_names(architectures) if known.rpartition(".")[0] == name.rpartition(".")[0]]
    return f"{name} is no field of the spec{_suggest(name, siblings or field_names(architectures))}"


def _suggest(name: str, allowed: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, allowed, n=1, cutoff=0.5)
    close = close or [known for known in allowed if known.rpartition(".")[2] == name.rpartition(".")[2]][:1]
    if close:
        return f"; did you mean {close[0]}?"
    return f"; allowed: {', '.join(allowed)}." if len(allowed) <= 40 else "."


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


def _fixed_problem(name: str, item: SpaceItem) -> str | None:
    named = {name}
    if name == "train":
        named |= {f"train.{key}" for value in _values(item) if isinstance(value, Mapping) for key in value}
    for field in FIXED_FIELDS:
        if any(known == field or known.startswith(f"{field}.") for known in named):
            return f"{field} is the same for all trials and the final training; set it in `train` instead."
    return None


def _field_problem(name: str, item: SpaceItem, model: ModelConfig, train: TrainConfig) -> str | None:
    """Why a value is refused by the field itself, whatever stands beside it."""
    for value in _values(item):
        problem = _refusal({name: value}, model, train, rules=False)
        if problem:
            return f"{name} cannot be {value!r}: {problem}."
    return None


def _rule_problem(name: str, sound: Mapping[str, Sequence[Any]], model: ModelConfig, train: TrainConfig) -> str | None:
    """Why a value fits no combination of the other entries; None if each has its use."""
    section = name.split(".")[0]
    others = {other: values for other, values in sound.items() if other != name and other.split(".")[0] == section}
    for value in sound[name]:
        combinations = itertools.islice(itertools.product(*others.values()), MAX_COMBINATIONS)
        configs = ({**dict(zip(others, chosen, strict=True)), name: value} for chosen in combinations)
        problems = (_refusal(config, model, train, rules=True) for config in configs)
        first = next(problems)
        if first and all(problems):
            return f"{name} cannot be {value!r}: {first}."
    return None


def _refusal(config: Mapping[str, Any], model: ModelConfig, train: TrainConfig, rules: bool) -> str | None:
    """What the sections say against `config`; `rules` tells whether rules between fields count."""
    try:
        apply_config(model, train, config)
    except ValidationError as error:
        # Our validators raise ValueError, and all of them are rules between fields.
        details = [item for item in error.errors(include_url=False) if rules or item["type"] != "value_error"]
        return details[0]["msg"].removeprefix("Value error, ").rstrip(".") if details else None
    return None
