"""components/tune/expression.py: what is read, what it means, and that nothing else is."""

from __future__ import annotations

import pytest

from components.tune.expression import ExpressionError, parse

FIELDS = {"model": {"architecture": "text-cnn", "hidden_size": 96, "heads": 4}, "train": {"rate": 1e-3, "clip": None}}


@pytest.mark.parametrize(
    "text",
    [
        "model.architecture == text-cnn",
        "model.architecture in [bert, text-cnn]",
        "model.architecture not in ['bert', 'vit']",
        "model.hidden_size % model.heads == 0",
        "model.hidden_size - 1 == 95",
        "2 + 3 * 4 == 14 and (2 + 3) * 4 == 20",
        "not train.rate > 1e-2",
        "train.clip == null or train.rate < 1",
        "-model.heads < 0",
        "7 // 2 == 3 and 7 / 2 == 3.5",
        "8 - 4 - 2 == 2",
        "1 == 2 or 2 == 2 and true",
    ],
)
def test_true_of_the_fields(text):
    assert parse(text).holds(FIELDS, missing=False)
    assert not parse(f"not ({text})").holds(FIELDS, missing=True)


@pytest.mark.parametrize("missing", [True, False])
def test_a_field_that_is_not_there_gives_what_was_asked_for(missing):
    assert parse("model.num_filters > 3").holds(FIELDS, missing) is missing


def test_what_comes_first_spares_the_rest():
    assert parse("model.heads == 4 or model.num_filters > 3").holds(FIELDS, missing=False)
    assert not parse("model.heads == 5 and model.num_filters > 3").holds(FIELDS, missing=True)


@pytest.mark.parametrize("text", ["model.heads / 0 > 1", "model.architecture < 3", "3 in model.heads"])
def test_what_cannot_be_computed_is_not_met(text):
    assert not parse(text).holds(FIELDS, missing=True)


def test_fields_are_named():
    assert parse("model.a == 1 and train.b.c in [model.a, bert]").fields == ("model.a", "train.b.c")


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("", "a value is missing at its end"),
        ("model.a ==", "a value is missing at its end"),
        ("model.a == 1 2", "'2' is not expected"),
        ("(model.a == 1", "')' is missing"),
        ("model.a = 1", "'=' is not allowed at character 8"),
        ("model.a.__class__()", "'(' is not expected"),
        ("__import__('os').system('x')", "is not expected"),
        ("[1, 2", "']' is missing"),
        ("model.a ** 9 > 1", "a value is missing before '*'"),
        ("model.a; 1", "';' is not allowed"),
        ("1 +" * 400, "at most 500"),
    ],
)
def test_anything_else_is_refused(text, part):
    with pytest.raises(
        ExpressionError, match=part.replace("(", r"\(").replace(")", r"\)").replace("*", r"\*").replace("]", r"\]")
    ):
        parse(text)
