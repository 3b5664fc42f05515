"""The spec: one file that says everything about a run. Its sections are the config classes of the stages.

    loaded = load_spec("news.yaml", {"train.epochs": "5"})
    loaded.spec.train.epochs

All errors are reported at once, each with the line in the file and what is allowed.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, field_validator

from components.compress.config import CompressConfig
from components.config import Config
from components.data.config import DataConfig
from components.errors import PenstockError, SpecError
from components.evaluate.config import EvaluateConfig
from components.models.config import ModelConfig
from components.register.config import RegisterConfig
from components.serve.config import DeployConfig
from components.tasks import TASKS
from components.tasks.tokenizers import BUILT
from components.train.config import TrainConfig
from components.tune.config import TuneConfig
from pipelines.spec_errors import SpecErrors, explain, not_available
from pipelines.spec_rules import check_rules
from pipelines.yaml_source import Source, parse_value, read_yaml

NAME = r"^[A-Za-z0-9][A-Za-z0-9_-]{0,62}$"
MAX_EXTENDS = 5
OPTIONAL = frozenset({"tune", "compress", "evaluate", "register", "deploy"})
"""Sections that may be `false`."""
RECIPES = Path(__file__).parent / "recipes"


class Spec(Config):
    """One run, from raw data to an endpoint."""

    version: Literal[1] = 1
    """Version of the spec's format."""
    name: str = Field("model", pattern=NAME)
    """Names the run and the registered model: letters, digits, - and _."""
    task: str
    """image-classification | text-classification | text-generation | text2text-generation."""
    seed: int = Field(0, ge=0, lt=2**31)
    """Governs all randomness but the split, which has its own seed."""
    data: DataConfig
    model: ModelConfig
    train: TrainConfig = TrainConfig()
    tune: TuneConfig | None = None
    """Searches hyperparameters before the training; left out by default."""
    compress: CompressConfig | None = CompressConfig()
    """`false` serves the trained model as it is."""
    evaluate: EvaluateConfig | None = EvaluateConfig()
    """`false` leaves the test split closed; then nothing can be registered."""
    registry: RegisterConfig | None = Field(RegisterConfig(), alias="register")
    """`false` registers nothing."""
    deploy: DeployConfig | None = DeployConfig()
    """`false` deploys nothing."""

    @field_validator("task")
    @classmethod
    def _known_task(cls, task: str) -> str:
        if task not in TASKS:
            raise ValueError(f"{task!r} is no task of this version; allowed: {', '.join(TASKS)}")
        return task

    @property
    def model_name(self) -> str:
        """Name in the registry and of the endpoint."""
        return (self.registry.name if self.registry else None) or self.name

    def to_dict(self) -> dict[str, Any]:
        """Plain values by the names of the file."""
        return self.model_dump(mode="json", by_alias=True)

    def canonical_json(self) -> str:
        """The same text for the same spec, whatever its file looks like."""
        return json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"))

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.canonical_json().encode()).hexdigest()


@dataclass(frozen=True)
class LoadedSpec:
    """A valid spec and where it came from."""

    spec: Spec
    path: Path | None


def load_spec(source: str | Path | Mapping[str, Any], overrides: Mapping[str, Any] | None = None) -> LoadedSpec:
    """Loads and checks a spec.

    Args:
        source: A file, the name of a recipe, or the values themselves.
        overrides: Dotted field -> value; a string is read as YAML. Relative paths in it are from the working directory.

    Raises:
        SpecErrors: All that is wrong, each with its line.
    """
    if isinstance(source, Mapping):
        path, parsed = None, Source(json.loads(json.dumps(source)))
        folder = Path.cwd()
    else:
        path = find_spec(source)
        parsed = _read_extended(path, 0)
        folder = path.parent
        parsed.values.setdefault("name", _name_from(path))
    resolve_paths(parsed.values, folder)
    for name, value in (overrides or {}).items():
        _override(parsed.values, name, value)
    return LoadedSpec(validate(parsed), path)


def validate(parsed: Source) -> Spec:
    """Builds the Spec, turning everything that is wrong into sentences."""
    errors: list[PenstockError] = not_available(parsed) + split_workers(parsed)
    spec = None
    try:
        # JSON mode is strict about types ("3" is no number) and still takes lists for tuples.
        spec = Spec.model_validate_json(json.dumps(leave_out(parsed.values)), strict=True)
    except ValidationError as error:
        errors += explain(error, parsed, Spec)
    except (TypeError, ValueError) as error:
        errors.append(SpecError(f"The spec holds a value that is no plain data ({error})."))
    if spec is not None and not errors:
        errors = check_rules(spec)
        for found in errors:
            found.line = found.line or parsed.lines.get(found.field or "")
    if errors:
        raise SpecErrors(errors)
    assert spec is not None
    return spec


def leave_out(values: Mapping[str, Any]) -> dict[str, Any]:
    """`deploy: false` leaves the stage out: the same as null. A validator in the class would switch off JSON mode."""
    return {name: None if value is False and name in OPTIONAL else value for name, value in values.items()}


def split_workers(parsed: Source) -> list[PenstockError]:
    """Makes `train.workers: {min, max}` the two fields that it stands for, here for the same reason."""
    train = parsed.values.get("train")
    workers = train.get("workers") if isinstance(train, dict) else None
    if not isinstance(train, dict) or not isinstance(workers, dict):
        return []
    line = parsed.lines.get("train.workers")
    if set(workers) != {"min", "max"}:
        del train["workers"]
        message = f"train.workers is {workers}; give a number, or min and max: {{min: 2, max: 8}}."
        return [SpecError(message, "train.workers", line)]
    train.update(workers=workers["max"], min_workers=workers["min"])
    parsed.lines.setdefault("train.min_workers", line or 0)
    return []


def find_spec(source: str | Path) -> Path:
    """The file a user means: a path, or the name of a ready recipe."""
    path = Path(source)
    recipe = RECIPES / f"{source}.yaml"
    if not path.exists() and re.fullmatch(r"[a-z0-9-]+", str(source)) and recipe.exists():
        return recipe
    if not path.exists():
        names = ", ".join(sorted(recipe.stem for recipe in RECIPES.glob("*.yaml")))
        raise SpecErrors([SpecError(f"There is no spec at {path}; give a file, or one of the recipes: {names}.")])
    return path.absolute()


def resolve_paths(values: dict[str, Any], folder: Path) -> None:
    """Makes `data.source`, and a `data.text.tokenizer` or `model.pretrained` that is a folder, absolute."""
    data, model = values.get("data"), values.get("model")
    if isinstance(data, dict) and isinstance(data.get("source"), str) and "://" not in data["source"]:
        data["source"] = absolute(data["source"], folder)
    text = data.get("text") if isinstance(data, dict) else None
    for section, name in ((model, "pretrained"), (text, "tokenizer")):
        if not isinstance(section, dict) or not isinstance(section.get(name), str) or section[name] in BUILT:
            continue
        if (folder / section[name]).exists():
            section[name] = absolute(section[name], folder)


def absolute(path: str, folder: Path) -> str:
    return os.path.normpath(folder.absolute() / Path(path).expanduser())


def _read_extended(path: Path, depth: int) -> Source:
    parsed = read_yaml(path)
    parent = parsed.values.pop("extends", None)
    if parent is None:
        return parsed
    if not isinstance(parent, str) or not parent.endswith((".yaml", ".yml")) or depth >= MAX_EXTENDS:
        raise SpecErrors([
            SpecError(f"extends is {parent!r}; it must name a .yaml file, at most {MAX_EXTENDS} deep.", "extends",
                      parsed.lines.get("extends"))
        ])  # fmt: skip
    base = _read_extended(path.parent / parent, depth + 1)
    resolve_paths(base.values, (path.parent / parent).parent)
    return Source(merge(base.values, parsed.values), parsed.lines)


def merge(base: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    """`change` over `base`, section by section; a model of another architecture replaces the section whole."""
    result = dict(base)
    for name, value in change.items():
        old = result.get(name)
        other = isinstance(old, dict) and isinstance(value, dict) and "architecture" in value
        if isinstance(old, dict) and isinstance(value, dict) and not (other and value != old.get("architecture")):
            result[name] = merge(old, value)
        else:
            result[name] = value
    return result


def _override(values: dict[str, Any], name: str, value: Any) -> None:
    *sections, last = name.split(".")
    target = values
    for section in sections:
        inner = target.get(section)
        if not isinstance(inner, dict):
            inner = target[section] = {}
        target = inner
    target[last] = parse_value(value) if isinstance(value, str) else value
    if name in ("data", "model", "data.source", "data.text", "data.text.tokenizer", "model.pretrained"):
        resolve_paths(values, Path.cwd())


def _name_from(path: Path) -> str:
    return re.sub(r"[^A-Za-z0-9_-]", "-", path.stem).lstrip("-_")[:63] or "model"
