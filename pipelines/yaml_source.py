"""Reads a spec file: YAML 1.2, safely, keeping the line of every key so that an error can point at it.

Anchors, aliases, tags of any kind, duplicate keys and deep nesting are refused: a spec needs none of them, and each
is a known way to make a loader run code or run out of memory.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from components.errors import SpecError

MAX_BYTES = 1 << 20
MAX_DEPTH = 24
VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
SECRET_NAME = re.compile(r"(SECRET|TOKEN|PASSWORD|PASSWD|CREDENTIAL|API_?KEY|ACCESS_?KEY|PRIVATE_?KEY)", re.IGNORECASE)


@dataclass
class Source:
    """A parsed file: plain values, and for each dotted name the line it stands on."""

    values: dict[str, Any]
    lines: dict[str, int] = field(default_factory=dict)


def read_yaml(path: Path) -> Source:
    """Parses the YAML file at `path`.

    Raises:
        SpecError: If it is absent, too large, no YAML, or uses what is refused; with the line.
    """
    try:
        size_bytes = path.stat().st_size
        text = path.read_text() if size_bytes <= MAX_BYTES and path.is_file() else None
    except FileNotFoundError as error:
        raise SpecError(f"There is no spec at {path}; give a file, or the name of a recipe.") from error
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(f"{path} cannot be read as text ({error}).") from error
    if text is None:
        raise SpecError(f"{path} is no regular file of at most 1 MiB; a spec is a few dozen lines of YAML.")
    return parse_yaml(text, str(path))


def parse_yaml(text: str, name: str = "<spec>") -> Source:
    """Parses YAML text whose top level is a mapping; see `read_yaml`."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    parser = YAML(typ="safe", pure=True)
    _refuse_anchors(parser, text, name)
    try:
        node = parser.compose(text)
    except YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = mark.line + 1 if mark else None
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise SpecError(f"{name} is no valid YAML: {problem}.", line=line) from error
    except RecursionError as error:
        raise SpecError(f"{name} is nested more than {MAX_DEPTH} deep.") from error
    builder = _Builder(parser, name)
    values = {} if node is None else builder.build(node, "", 0)
    if not isinstance(values, dict):
        raise SpecError(f"{name} holds a {type(values).__name__}; a spec is a mapping of sections.", line=1)
    return Source(values, builder.lines)


def parse_value(text: str) -> Any:
    """The value of `--set key=VALUE`: YAML, so that 3 is a number and [1, 2] a list."""
    return parse_yaml(f"value: {text}", f"--set value {text!r}").values["value"]


def _refuse_anchors(parser: Any, text: str, name: str) -> None:
    """Looks at the tokens before anything is composed: an alias bomb never unfolds, deep nesting never recurses."""
    from ruamel.yaml import tokens
    from ruamel.yaml.error import YAMLError

    opening = (
        tokens.BlockMappingStartToken,
        tokens.BlockSequenceStartToken,
        tokens.FlowMappingStartToken,
        tokens.FlowSequenceStartToken,
    )
    closing = (tokens.BlockEndToken, tokens.FlowMappingEndToken, tokens.FlowSequenceEndToken)
    depth = 0
    try:
        for token in parser.scan(text):
            line = token.start_mark.line + 1
            if isinstance(token, tokens.AnchorToken | tokens.AliasToken):
                raise SpecError(f"{name} uses a YAML anchor or alias, which a spec may not; write it out.", line=line)
            if isinstance(token, tokens.TagToken | tokens.DirectiveToken):
                raise SpecError(f"{name} uses a YAML tag or directive, which a spec may not; drop it.", line=line)
            depth += isinstance(token, opening) - isinstance(token, closing)
            if depth > MAX_DEPTH:
                raise SpecError(f"{name} is nested more than {MAX_DEPTH} deep.", line=line)
    except YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        raise SpecError(
            f"{name} is no valid YAML: {getattr(error, 'problem', None) or error}.",
            line=mark.line + 1 if mark else None,
        ) from error


class _Builder:
    """Turns nodes into plain values, noting lines."""

    def __init__(self, parser: Any, name: str) -> None:
        self.constructor = parser.constructor
        self.name = name
        self.lines: dict[str, int] = {}

    def build(self, node: Any, path: str, depth: int) -> Any:
        self.lines[path] = node.start_mark.line + 1
        if node.id == "mapping":
            return self._mapping(node, path, depth)
        if node.id == "sequence":
            return [self.build(item, f"{path}.{index}".strip("."), depth + 1) for index, item in enumerate(node.value)]
        value = self._scalar(node)
        return expand_variables(value, path, self.lines[path]) if isinstance(value, str) else value

    def _mapping(self, node: Any, path: str, depth: int) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if key_node.id != "scalar":
                raise SpecError(f"{self.name} has a key that is no plain word.", line=line)
            key = str(key_node.value)
            if key in result:
                raise SpecError(f"{self.name} has the key {key!r} twice; keep one.", field=path or key, line=line)
            inner = f"{path}.{key}".strip(".")
            result[key] = self.build(value_node, inner, depth + 1)
            self.lines[inner] = line
        return result

    def _scalar(self, node: Any) -> Any:
        try:
            value = self.constructor.construct_object(node)
        except Exception as error:  # the constructor raises many kinds for a scalar it cannot read
            raise SpecError(f"{self.name}: {node.value!r} cannot be read.", line=node.start_mark.line + 1) from error
        if value is None or isinstance(value, str | int | float | bool):
            return value
        return str(node.value)  # dates and the like stay text


def expand_variables(text: str, path: str, line: int | None) -> str:
    """Replaces `${NAME}` by the environment variable NAME.

    Raises:
        SpecError: If it is not set, or its name says that it holds a secret: a spec is written into every run.
    """

    def value_of(match: re.Match[str]) -> str:
        name = match.group(1)
        if SECRET_NAME.search(name):
            raise SpecError(
                f"{path} takes the environment variable {name}, which looks like a secret; a spec holds none.",
                field=path,
                line=line,
            )
        if name not in os.environ:
            raise SpecError(f"{path} takes the environment variable {name}, which is not set.", field=path, line=line)
        return os.environ[name]

    return VARIABLE.sub(value_of, text)
