"""What `penstock check` says about the `tune` section: everything that would make a sweep fail or mean nothing."""

from __future__ import annotations

import difflib
import itertools
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from components.errors import SpecError
from components.models.config import ARCHITECTURES, ModelConfig
from components.tasks.base import Task
from components.train.config import TrainConfig
from components.tune.aims import check_aims
from components.tune.config import TuneConfig
from components.tune.distributions import Distribution, IntLogUniform, Range
from components.tune.expression import parse
from components.tune.fields import apply_config, field_names, fields_of, merge_config
from components.tune.space import SearchSpace

SECTIONS = ("model", "train")
FIXED_FIELDS = (
    "train.epochs", "train.max_steps", "train.validate_every_steps", "train.workers", "train.min_workers",
    "train.max_restarts", "train.zero",
)  # fmt: skip
"""The final training takes these from the spec, so a sweep over them would be about nothing."""
MAX_COMBINATIONS = 300
"""Combinations tried before a value is refused by a rule between fields: `check` must answer at once."""
SAMPLES = 1000
"""Configurations drawn to see whether conditions and constraints can be met."""
MAX_GRID = 20_000


def check_tune(tune: TuneConfig, model: ModelConfig, train: TrainConfig, task: Task) -> list[SpecError]:
    """Everything that is wrong with a sweep over these sections."""
    errors = check_space(tune.space, model, train) + check_expressions(tune) + check_aims(tune, task)
    if errors:
        return errors
    if tune.folds and task.packed:
        return [SpecError(f"tune.folds parts rows, and {task.name} has one long text; leave it out.", "tune.folds")]
    space = SearchSpace(tune, model, train)
    return check_grid(tune, space) if tune.search == "grid" else check_reach(space) or check_points(tune, space)


def check_points(tune: TuneConfig, space: SearchSpace) -> list[SpecError]:
    """Known good points that do not lie in the space."""
    errors = []
    for place, point in enumerate(tune.points):
        field = f"tune.points.{place}"
        strange = next((name for name in point if name not in space.entries), None)
        outside = next((name for name in point if not strange and not space.entries[name].contains(point[name])), None)
        if strange:
            errors.append(SpecError(f"{field} names {strange}, which tune.space does not search; remove it.", field))
        elif outside:
            errors.append(SpecError(f"{field}: {outside} {point[outside]!r} lies outside tune.space; widen it.", field))
        elif not _can_be_completed(space, point):
            errors.append(SpecError(f"{field} breaks a constraint, or names what is not searched there.", field))
    return errors


def _can_be_completed(space: SearchSpace, point: Mapping[str, Any]) -> bool:
    generator = random.Random("penstock check")
    for _ in range(SAMPLES):
        config = space.fill(lambda name, item: point[name] if name in point else item.draw(generator))
        if set(point) <= set(config) and space.allows(config):
            return True
    return False


def check_space(space: Mapping[str, Distribution], model: ModelConfig, train: TrainConfig) -> list[SpecError]:
    """Every name that is no field a sweep can address, and every value that its section refuses."""
    architectures = _reachable_architectures(space, model)
    problems = {
        name: _name_problem(name, architectures)
        or _fixed_problem(name, item)
        or _field_problem(name, item, architectures, model, train)
        for name, item in space.items()
    }
    # Rules between fields are asked of sound entries only, else one bad entry would make all others look bad.
    sound = {name: _values(space[name]) for name, problem in problems.items() if problem is None}
    problems |= {name: _rule_problem(name, sound, model, train) for name in sound}
    return [SpecError(problem, field=f"tune.space.{name}") for name, problem in problems.items() if problem]


def check_expressions(tune: TuneConfig) -> list[SpecError]:
    """Fields in `when` and `constraints` that do not exist, or are decided too late."""
    errors, stated = [], list(tune.space)
    for name, item in tune.space.items():
        later = stated[stated.index(name) :]
        for used in parse(item.when).fields if item.when else ():
            problem = _unknown_field(used)
            if problem is None and any(_overlap(used, other) for other in later):
                problem = f"{used} is searched after {name}; state it before"
            if problem:
                errors.append(SpecError(f"tune.space.{name}: in `when`, {problem}.", f"tune.space.{name}"))
    for text in tune.constraints:
        unknown = next((problem for used in parse(text).fields if (problem := _unknown_field(used))), None)
        if unknown:
            errors.append(SpecError(f"tune.constraints: in `{text}`, {unknown}.", "tune.constraints"))
    return errors


def _unknown_field(name: str) -> str | None:
    known = field_names()
    if name in known:
        return None
    return f"{name} is no field of `model` or `train`{_suggest(name, known)}".rstrip(".")


def _overlap(one: str, other: str) -> bool:
    """Whether one name is the other, or a section around it."""
    return f"{one}.".startswith(f"{other}.") or f"{other}.".startswith(f"{one}.")


def check_grid(tune: TuneConfig, space: SearchSpace) -> list[SpecError]:
    """A grid without points, one that is too large to list, and more trials than it has points."""
    size = sum(1 for _ in itertools.islice(space.grid(), MAX_GRID + 1))
    if size > MAX_GRID:
        text = f"tune.space: the grid has more than {MAX_GRID:,} points; use `search: random`, or fewer values."
        return [SpecError(text, "tune.space")]
    if size == 0:
        return [_nothing_meets("no point of the grid meets them")]
    if tune.trials is not None and tune.trials > size:
        text = f"tune.trials is {tune.trials}, but the grid has {size} points; lower trials or leave it out."
        return [SpecError(text, "tune.trials")]
    return []


def check_reach(space: SearchSpace) -> list[SpecError]:
    """Constraints and conditions that no configuration meets, as far as a thousand draws can tell."""
    draws = list(_sample(space))
    for constraint in space.constraints:
        fields = (merge_config(space.model, space.train, draw) for draw in draws)
        if not any(constraint.holds(values, missing=True) for values in fields):
            return [_nothing_meets(f"none of {SAMPLES:,} configurations drawn meets `{constraint.text}`")]
    if not any(map(space.allows, draws)):
        return [_nothing_meets(f"none of {SAMPLES:,} configurations drawn meets them all")]
    dead = [name for name in space.conditions if not any(name in draw for draw in draws)]
    return [
        SpecError(f"tune.space.{name} is never searched: `when: {space.conditions[name].text}` never holds.",
                  f"tune.space.{name}")
        for name in dead
    ]  # fmt: skip


def _sample(space: SearchSpace) -> Iterator[dict[str, Any]]:
    if not (space.constraints or space.conditions):
        yield space.draw(random.Random(0))
        return
    generator = random.Random("penstock check")
    for _ in range(SAMPLES):
        yield space.fill(lambda name, item: item.draw(generator))


def _nothing_meets(why: str) -> SpecError:
    return SpecError(f"tune.constraints: {why}; loosen the constraints or widen the space.", "tune.constraints")


def _reachable_architectures(space: Mapping[str, Distribution], model: ModelConfig) -> list[str]:
    """The architectures that some trial may have."""
    named = [value.get("architecture") for value in _values(space.get("model")) if isinstance(value, Mapping)]
    named += _values(space.get("model.architecture"))
    known = [name for name in named if name in ARCHITECTURES]
    return list(dict.fromkeys(known)) or [model.architecture]


def _values(item: Distribution | None) -> list[Any]:
    """Values to check: all of a list; of a range its ends and a point inside, which a whole-number field refuses."""
    if item is None:
        return []
    if not isinstance(item, Range):
        return list(item.values)
    low, high = item.ends
    if item.spacing is not None or isinstance(item, IntLogUniform):
        return [low, high]
    return [low, high, float(f"{low + 0.382 * (high - low):.3g}")]


def _name_problem(name: str, architectures: Sequence[str]) -> str | None:
    section, *path = name.split(".")
    if section not in SECTIONS:
        allowed = field_names(architectures)
        return f"{name} cannot be searched: a sweep takes fields of `model` and `train`{_suggest(name, allowed)}"
    if name in field_names(architectures):
        return None
    if section == "model" and len(path) == 1 and any(path[0] in fields_of(known) for known in ARCHITECTURES):
        owners = ", ".join(known for known in ARCHITECTURES if path[0] in fields_of(known))
        return f"{name} is no field of {', '.join(architectures)}; it belongs to {owners}."
    siblings = [known for known in field_names(architectures) if known.rpartition(".")[0] == name.rpartition(".")[0]]
    return f"{name} is no field of the spec{_suggest(name, siblings or field_names(architectures))}"


def _suggest(name: str, allowed: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, allowed, n=1, cutoff=0.5)
    close = close or [known for known in allowed if known.rpartition(".")[2] == name.rpartition(".")[2]][:1]
    if close:
        return f"; did you mean {close[0]}?"
    return f"; allowed: {', '.join(allowed)}." if len(allowed) <= 40 else "."


def _fixed_problem(name: str, item: Distribution) -> str | None:
    named = {name}
    if name == "train":
        named |= {f"train.{key}" for value in _values(item) if isinstance(value, Mapping) for key in value}
    for field in FIXED_FIELDS:
        if any(known == field or known.startswith(f"{field}.") for known in named):
            return f"{field} is the same for all trials and the final training; set it in `train` instead."
    return None


def _field_problem(
    name: str, item: Distribution, architectures: Sequence[str], model: ModelConfig, train: TrainConfig
) -> str | None:
    """Why a value is refused by the field itself, whatever stands beside it."""
    section, *path = name.split(".")
    owners = [known for known in architectures if path and path[0] in fields_of(known)] if section == "model" else []
    for value in _values(item):
        for config in [{"model.architecture": owner, name: value} for owner in owners] or [{name: value}]:
            problem = _refusal(config, model, train, rules=False)
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
