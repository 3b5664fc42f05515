from __future__ import annotations

import pytest

from components.errors import SpecError
from pipelines.spec import RECIPES, Spec, load_spec, merge

SHORTEST = {"task": "image-classification", "data": {"source": "builtin://digits"}, "model": {"architecture": "mlp"}}


def errors_of(values, overrides=None):
    with pytest.raises(SpecError) as caught:
        load_spec(values, overrides)
    return caught.value.errors


def test_the_shortest_spec_has_all_defaults():
    spec = load_spec(SHORTEST).spec
    assert spec.train.epochs == 10
    assert spec.compress is not None
    assert spec.tune is None


def test_all_errors_are_told_at_once_with_their_lines(tmp_path):
    path = tmp_path / "bad.yaml"
    path.write_text(
        "task: image-classification\ndata: {source: 'builtin://digits'}\nmodel:\n"
        "  architecture: vit\n  hidden_sise: 3\n"
        "train:\n  epochs: three\n  learning_rate: -1\nmonitor: {}\n"
    )
    errors = errors_of(path)
    found = {error.field: error for error in errors}
    assert set(found) == {"monitor", "model.hidden_sise", "train.epochs", "train.learning_rate"}
    assert found["model.hidden_sise"].line == 5
    assert "did you mean hidden_size?" in found["model.hidden_sise"].message
    assert "not a whole number" in found["train.epochs"].message
    assert "not available in this version" in found["monitor"].message


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"model.architecture": "bert"}, "does not fit image-classification"),
        ({"model.architecture": "vgg"}, "not available in this version"),
        ({"model.architecture": "foo"}, "allowed: mlp, cnn"),
        ({"task": "poetry"}, "no task of this version"),
        ({"task": "text-generation", "model.architecture": "gpt"}, "compress is not available for text-generation"),
        ({"train.seq_len": 64}, "train.seq_len is for language models"),
        ({"data.text.tokenizer": "byte"}, "byte is for tasks that write texts"),
        ({"train.global_batch_size": 10, "train.workers": 4}, "does not divide"),
        ({"train.zero.stage": 3, "train.regularize.l2": 0.1}, "use weight_decay"),
        ({"compress.candidates": "[distil]"}, "not available in this version"),
        ({"compress.candidates": "[int3]"}, "no candidate"),
        ({"data.split.test": 0.6, "data.split.validation": 0.5}, "leave no rows"),
        ({"data.split.by": "group"}, "needs `column`"),
        ({"deploy.host": "10.1.2.3"}, "PENSTOCK_API_KEYS_FILE"),
        ({"register": False}, "deploy needs a registered model"),
        ({"evaluate": False}, "register needs the gate"),
        ({"tune.space": '{"train.epoch": {choice: [1]}}'}, "train.epoch"),
        ({"tune.space": '{"train.learning_rate": {uniform: [2, 1]}}'}, "is empty"),
        ({"tune.space": '{"train.learning_rate": [1, 2]}'}, "no distribution"),
        ({"tune.space": '{"model": {choice: [{architecture: bert}]}}'}, "does not fit"),
        ({"name": "a/b"}, "name"),
        ({"train.learning_rate": ".nan"}, "finite"),
    ],
)
def test_what_cannot_be_is_one_sentence(change, says):
    errors = errors_of(SHORTEST, change)
    assert any(says in error.message for error in errors), [error.message for error in errors]
    assert all("\n" not in error.message for error in errors)


def test_strings_are_no_numbers():
    assert "not a whole number" in errors_of({**SHORTEST, "train": {"epochs": "3"}})[0].message


def test_paths_count_from_the_spec_and_overrides_from_the_working_directory(tmp_path, monkeypatch):
    folder = tmp_path / "specs"
    folder.mkdir()
    path = folder / "a.yaml"
    path.write_text("task: text-classification\ndata: {source: rows.csv}\nmodel: {architecture: gru}\n")
    monkeypatch.chdir(tmp_path)
    assert load_spec(path).spec.data.source == str(folder / "rows.csv")
    assert load_spec(path, {"data.source": "other.csv"}).spec.data.source == str(tmp_path / "other.csv")
    assert load_spec(path).spec.name == "a"


def test_extends_takes_the_base_and_replaces_another_architecture_whole(tmp_path):
    (tmp_path / "base.yaml").write_text(
        "task: image-classification\ndata: {source: 'builtin://digits'}\nmodel: {architecture: vit, hidden_size: 64}\n"
        "train: {epochs: 7, learning_rate: 5e-4}\n"
    )
    child = tmp_path / "child.yaml"
    child.write_text("extends: base.yaml\nmodel: {architecture: mlp}\ntrain: {epochs: 2}\n")
    spec = load_spec(child).spec
    assert (spec.model.architecture, spec.train.epochs, spec.train.learning_rate) == ("mlp", 2, 5e-4)


def test_extends_in_a_circle_is_refused(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("extends: a.yaml\n")
    assert "extends" in errors_of(path)[0].message


def test_equal_specs_have_equal_digests_and_other_specs_others():
    first, second = load_spec(SHORTEST).spec, load_spec({**SHORTEST, "train": {"epochs": 10}}).spec
    assert first.sha256 == second.sha256
    assert load_spec(SHORTEST, {"seed": "1"}).spec.sha256 != first.sha256
    assert Spec.model_validate_json(first.canonical_json()) == first


def test_merge_keeps_what_is_not_named():
    assert merge({"a": {"b": 1, "c": 2}}, {"a": {"b": 3}}) == {"a": {"b": 3, "c": 2}}


def test_a_missing_spec_names_the_recipes():
    assert "recipes" in errors_of("no-such-recipe")[0].message


@pytest.mark.parametrize("recipe", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_loads(recipe, monkeypatch, tmp_path):
    assert load_spec(recipe).spec.name
