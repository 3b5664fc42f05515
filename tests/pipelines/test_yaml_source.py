"""Security row 19 of the fault matrix among them: what a spec file may not make the loader do."""

from __future__ import annotations

import pytest

from components.errors import SpecError
from pipelines.yaml_source import parse_value, parse_yaml, read_yaml


def test_values_follow_yaml_1_2_and_lines_are_kept():
    parsed = parse_yaml("a: 5e-4\nb:\n  c: no\n  d: [1, {e: 2020-01-01}]\n")
    assert parsed.values == {"a": 0.0005, "b": {"c": "no", "d": [1, {"e": "2020-01-01"}]}}
    assert (parsed.lines["a"], parsed.lines["b.c"], parsed.lines["b.d.1.e"]) == (1, 3, 4)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: &x [1]\nb: *x", "anchor or alias"),
        ("a: !!python/object/apply:os.system [id]", "tag"),
        ("%YAML 1.1\n---\na: no", "directive"),
        ("a: 1\na: 2", "twice"),
        ("a: " + "[" * 5000, "nested"),
        ("a: " * 5000, "no valid YAML"),
        ("a: 1\n---\nb: 2", "another document"),
        ("[1, 2]", "holds a list"),
        ("? [1]\n: 2", "no plain word"),
    ],
)
def test_security_19_unsafe_yaml_is_refused_with_its_line(text, says):
    with pytest.raises(SpecError, match=says) as caught:
        parse_yaml(text)
    assert caught.value.line is not None


def test_security_19_an_alias_bomb_is_refused_before_it_unfolds():
    bomb = "a: &a [x, x]\n" + "\n".join(f"b{i}: &b{i} [*a, *a]" for i in range(50))
    with pytest.raises(SpecError, match="anchor or alias"):
        parse_yaml(bomb)


def test_a_large_file_is_refused(tmp_path):
    path = tmp_path / "big.yaml"
    path.write_text("a: " + "x" * (1 << 20))
    with pytest.raises(SpecError, match="1 MiB"):
        read_yaml(path)


def test_environment_variables_are_taken_but_never_secrets(monkeypatch):
    monkeypatch.setenv("DATA_ROOT", "/data")
    monkeypatch.setenv("S3_SECRET_KEY", "canary")
    assert parse_yaml("a: ${DATA_ROOT}/x.csv").values["a"] == "/data/x.csv"
    with pytest.raises(SpecError, match="secret") as caught:
        parse_yaml("a: ${S3_SECRET_KEY}")
    assert "canary" not in str(caught.value)
    with pytest.raises(SpecError, match="not set"):
        parse_yaml("a: ${NO_SUCH_VARIABLE_HERE}")


def test_an_override_is_yaml():
    assert [parse_value("3"), parse_value("[1, 2]"), parse_value("x")] == [3, [1, 2], "x"]
