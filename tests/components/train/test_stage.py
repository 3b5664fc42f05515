import numpy as np
import pytest

from components.artifacts import open_artifact, write_artifact
from components.artifacts.dataset import open_split
from components.models import load_predictor
from components.train.config import TrainConfig
from components.train.stage import StageConfig, run, winner
from tests.builders import make_context

MODEL = {"architecture": "mlp", "hidden_sizes": [16]}
TRAIN = {"epochs": 2, "global_batch_size": 32, "precision": "fp32"}


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def make_config(**train):
    values = {"task": "image-classification", "seed": 0, "model": MODEL, "train": {**TRAIN, **train}}
    return StageConfig.model_validate(values)


def test_model_is_whole_and_answers_as_it_was_measured(digits, tmp_path):
    artifact = run(make_config(), {"dataset": digits.ref}, str(tmp_path / "model"), make_context(tmp_path, "train"))
    opened = open_artifact(artifact.ref, kind="model")
    assert opened.manifest.inputs == {"dataset": digits.digest}
    predictor = load_predictor(opened.path)
    split = open_split(digits.path, "validation")
    logits = predictor.logits(predictor.preprocessing.collate(split.take(np.arange(len(split)))))
    accuracy = float((logits.argmax(axis=1) == split.labels()).mean())
    assert accuracy == pytest.approx(opened.manifest.metadata["metrics"]["validation"]["accuracy"])
    assert opened.manifest.metadata["parameters"] == 64 * 16 + 16 + 16 * 10 + 10
    assert opened.manifest.metadata["size_bytes"] > 4 * opened.manifest.metadata["parameters"]


def test_the_same_training_gives_the_same_digest(digits, tmp_path):
    digests = set()
    for name in ("a", "b"):
        context = make_context(tmp_path / name, "train")
        digests.add(run(make_config(), {"dataset": digits.ref}, str(tmp_path / name / "model"), context).digest)
    assert len(digests) == 1


def test_a_sweeps_winner_is_trained_with_the_specs_workers_sharding_and_epochs(digits, tmp_path):
    context = make_context(tmp_path, "train")
    best = {"model": {**MODEL, "hidden_sizes": [8]}, "train": {**TRAIN, "learning_rate": 0.02, "epochs": 1}}
    with write_artifact(str(tmp_path / "sweep"), "sweep", {}, context) as draft:
        draft.write_json("best.json", best)
    inputs = {"dataset": digits.ref, "sweep": draft.artifact.ref}
    artifact = run(make_config(), inputs, str(tmp_path / "model"), context)
    assert artifact.read_json("config.json")["architecture"]["hidden_sizes"] == [8]
    history = artifact.read_json("history.json")
    assert len(history) == 2
    assert history[0]["learning_rate"] > 0.01


def test_a_winners_batch_is_made_to_fit_the_workers():
    best = {"model": MODEL, "train": {"global_batch_size": 25, "workers": 1}}
    _, train = winner(best, TrainConfig(workers=2))
    assert (train.workers, train.global_batch_size) == (2, 26)
    _, train = winner(best, TrainConfig(workers=4, min_workers=2, global_batch_size=12))
    assert (list(train.world_sizes()), train.global_batch_size) == ([2, 3, 4], 36)
