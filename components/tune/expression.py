"""Small expressions over the fields of a configuration: the `when` of a space entry and the `constraints` of a sweep.

    expression = parse("model.architecture == text-cnn and train.learning_rate <= 1e-2")
    expression.holds({"model": {"architecture": "text-cnn"}, "train": {"learning_rate": 1e-3}}, missing=False)    # True

A word with a dot is a field, one without is text (`bert`, `text-cnn`), so quotes are rarely needed. Put spaces around a
minus. Allowed: numbers, text, true, false, null, lists, + - * / // %, comparisons, `in`, `not`, `and`, `or`, brackets.
Nothing else exists here: no calls, no attributes, no Python.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

Fields = Mapping[str, Any]
Node = Callable[[Fields], Any]

MAX_CHARACTERS = 500
"""Bounds the depth of the parser's recursion."""
TOKEN = re.compile(
    r"\s*(?:(?P<number>\d+(?:\.\d+)?(?:[eE][+-]?\d+)?)|(?P<text>'[^']*'|\"[^\"]*\")"
    r"|(?P<word>[A-Za-z_]\w*(?:[-.]\w+)*)|(?P<sign>==|!=|<=|>=|//|[-+*/%<>()\[\],]))"
)
COMPARISONS: dict[str, Callable[[Any, Any], Any]] = {
    "==": operator.eq, "!=": operator.ne, "<=": operator.le, ">=": operator.ge, "<": operator.lt, ">": operator.gt,
    "in": lambda left, right: left in right, "not in": lambda left, right: left not in right,
}  # fmt: skip
SUMS = {"+": operator.add, "-": operator.sub}
PRODUCTS = {"*": operator.mul, "/": operator.truediv, "//": operator.floordiv, "%": operator.mod}
CONSTANTS = {"true": True, "false": False, "null": None}


class ExpressionError(ValueError):
    """The text is no expression; the message is a clause without a closing stop."""


class MissingField(KeyError):
    """A field that this configuration does not have, such as another architecture's."""


@dataclass(frozen=True)
class Expression:
    """A parsed expression.

    Attributes:
        text: As it was written.
        fields: The dotted names in it, in order.
    """

    text: str
    fields: tuple[str, ...]
    node: Node = field(repr=False, compare=False)

    def holds(self, fields: Fields, missing: bool) -> bool:
        """Whether it is true of a configuration; one that cannot be computed (a division by zero) is not.

        Args:
            fields: Nested sections: {"model": {...}, "train": {...}}.
            missing: The answer when a field in it does not exist here.
        """
        try:
            return bool(self.node(fields))
        except MissingField:
            return missing
        except (TypeError, ArithmeticError):
            return False


def parse(text: str) -> Expression:
    """Reads an expression.

    Raises:
        ExpressionError: Saying what is wrong and where.
    """
    if len(text) > MAX_CHARACTERS:
        raise ExpressionError(f"it has {len(text)} characters; at most {MAX_CHARACTERS} are read")
    parser = _Parser(text)
    node = parser.either()
    if parser.kind != "end":
        raise ExpressionError(f"{parser.token!r} is not expected at character {parser.start + 1}")
    return Expression(text, tuple(dict.fromkeys(parser.fields)), node)


def look_up(fields: Fields, name: str) -> Any:
    """The value of a dotted name.

    Raises:
        MissingField: If there is none.
    """
    value: Any = fields
    for part in name.split("."):
        if not isinstance(value, Mapping) or part not in value:
            raise MissingField(name)
        value = value[part]
    return value


class _Parser:
    """Recursive descent, one method a level, loosest first. `kind` and `token` are the next token, not yet taken."""

    def __init__(self, text: str) -> None:
        self.text, self.end, self.fields = text, 0, list[str]()
        self.kind, self.token, self.start = "end", "", 0
        self.advance()

    def advance(self) -> str:
        """Takes the next token and gives it."""
        taken = self.token
        self.start = self.end
        match = TOKEN.match(self.text, self.end)
        if match:
            self.kind, self.token, self.end = str(match.lastgroup), match[str(match.lastgroup)], match.end()
        elif self.text[self.end :].strip():
            raise ExpressionError(f"{self.text[self.end :].strip()[0]!r} is not allowed at character {self.end + 1}")
        else:
            self.kind, self.token = "end", ""
        return taken

    def accept(self, *tokens: str) -> str | None:
        """Takes the next token if it is one of these signs or words."""
        return self.advance() if self.kind in ("sign", "word") and self.token in tokens else None

    def expect(self, token: str) -> None:
        if self.accept(token) is None:
            raise ExpressionError(f"{token!r} is missing at character {self.start + 1}")

    def either(self) -> Node:
        node = self.both()
        while self.accept("or"):
            node = _lazy_or(node, self.both())
        return node

    def both(self) -> Node:
        node = self.negated()
        while self.accept("and"):
            node = _lazy_and(node, self.negated())
        return node

    def negated(self) -> Node:
        if self.accept("not"):
            inner = self.negated()
            return lambda fields: not inner(fields)
        return self.comparison()

    def comparison(self) -> Node:
        left = self.chain(lambda: self.chain(self.negative, PRODUCTS), SUMS)
        sign = self.accept(*COMPARISONS) or ("not in" if self.accept("not") else None)
        if sign == "not in":
            self.expect("in")
        if sign is None:
            return left
        return _apply(COMPARISONS[sign], left, self.chain(lambda: self.chain(self.negative, PRODUCTS), SUMS))

    def chain(self, below: Callable[[], Node], signs: Mapping[str, Callable[[Any, Any], Any]]) -> Node:
        """Operators of one level, from left to right."""
        node = below()
        while sign := self.accept(*signs):
            node = _apply(signs[sign], node, below())
        return node

    def negative(self) -> Node:
        if self.accept("-"):
            inner = self.negative()
            return lambda fields: -inner(fields)
        return self.atom()

    def atom(self) -> Node:
        if self.accept("("):
            node = self.either()
            self.expect(")")
            return node
        if self.accept("["):
            return self.items()
        kind, token = self.kind, self.advance()
        if kind == "number":
            return _constant(float(token) if re.search(r"[.eE]", token) else int(token))
        if kind == "text":
            return _constant(token[1:-1])
        if kind == "word" and token not in ("and", "or", "not", "in"):
            return self.word(token)
        raise ExpressionError(f"a value is missing {f'before {token!r}' if token else 'at its end'}")

    def word(self, token: str) -> Node:
        if "." in token:
            self.fields.append(token)
            return lambda fields: look_up(fields, token)
        return _constant(CONSTANTS.get(token, token))

    def items(self) -> Node:
        nodes: list[Node] = []
        while not self.accept("]"):
            nodes.append(self.either())
            if not self.accept(","):
                self.expect("]")
                break
        return lambda fields: [node(fields) for node in nodes]


def _constant(value: Any) -> Node:
    return lambda fields: value


def _apply(function: Callable[[Any, Any], Any], left: Node, right: Node) -> Node:
    return lambda fields: function(left(fields), right(fields))


def _lazy_or(left: Node, right: Node) -> Node:
    return lambda fields: left(fields) or right(fields)


def _lazy_and(left: Node, right: Node) -> Node:
    return lambda fields: left(fields) and right(fields)
