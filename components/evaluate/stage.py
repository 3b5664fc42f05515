"""The evaluate stage: the only place that opens the test split, once. Metrics, predictions, and the gate's verdict."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.artifacts import Artifact, Draft, Ref, open_artifact, write_artifact
from components.artifacts.dataset import Split, open_split, open_tokens
from components.config import Config
from components.context import Context
from components.errors import StageError
from components.evaluate import language, pairs
from components.evaluate.answers import answer_raw_rows, answer_rows, to_answers, write_predictions
from components.evaluate.config import EvaluateConfig
from components.evaluate.gate import CHAMPION, COMPRESSED, METRIC, Comparison, judge
from components.evaluate.metrics import Answers, measure
from components.tasks import get_task

if TYPE_CHECKING:
    from components.tasks.base import Task

FLAT_METRICS = (
    *("accuracy", "precision", "recall", "f1", "loss", "perplexity", "bits_per_byte"),
    *("exact_match", "bleu", "rouge1", "rouge2", "rougeL"),
)


class AcceptRule(Config):
    """The part of `compress.accept` that the gate uses; the same numbers judge the newcomer against the champion."""

    max_drop: float = 0.01
    confidence: float = 0.95


class StageConfig(Config):
    """The fields of the spec that this stage reads."""

    task: str
    seed: int = 0
    evaluate: EvaluateConfig = EvaluateConfig()
    accept: AcceptRule = AcceptRule()
    name: str | None = None
    """Name in the registry; None where nothing is registered. It enters the cache key beside the champion."""
    tracking_uri: str = ""


@dataclass(frozen=True)
class Given:
    """The opened inputs; None where there is none."""

    task: Task
    dataset: Artifact
    model: Artifact
    compression: Artifact | None
    champion: Artifact | None
    classes: tuple[str, ...]

    @classmethod
    def open(cls, config: StageConfig, inputs: Mapping[str, Ref]) -> Given:
        task, dataset = get_task(config.task), open_artifact(inputs["dataset"], kind="dataset")
        if task.deciding_metric != METRIC:
            raise StageError(f"The gate tests {METRIC}, but {config.task} decides by {task.deciding_metric}.")
        return cls(
            task,
            dataset,
            open_artifact(inputs["model"], kind="model"),
            open_artifact(inputs["compression"], kind="compression") if "compression" in inputs else None,
            open_artifact(inputs["champion"], kind="model") if "champion" in inputs else None,
            tuple(dataset.read_json("schema.json")["classes"]),
        )

    def folders(self) -> dict[str, Path]:
        """Model folders by the name they have in the results."""
        named = {"trained": self.model.path}
        if self.compression is not None:
            named["compressed"] = self.compression.path / "model"
        if self.champion is not None:
            named["champion"] = self.champion.path
        return named

    def objection(self) -> str | None:
        """Why the compressed model is refused whatever the test says: none was within tolerance on validation."""
        facts = self.compression.manifest.metadata if self.compression is not None else {"passed": True}
        if facts["passed"]:
            return None
        best = (
            f"the best, {facts['method']}, lost {facts['drop']:.4f}" if facts.get("drop") is not None else "all failed"
        )
        return f"No candidate of compress was within tolerance on the validation rows ({best})."


def run(config: StageConfig, inputs: Mapping[str, Ref], output: str, context: Context) -> Artifact:
    """Measures the trained model, and where given the compressed one, the champion and a linear baseline, on the test
    rows, and judges whether the newcomer may be released.

    With a test share of 0 there are null metrics and no gate, so nothing passes: an untested model is not released.
    """
    task = get_task(config.task)
    if task.generative:
        return (run_language if task.packed else run_pairs)(config, inputs, output, context)
    given = Given.open(config, inputs)
    test = open_split(given.dataset.path, "test")
    answers = answer_all(given, test, config, context) if len(test) else {}
    results: dict[str, dict[str, Any]] = {
        name: {"test": measure_answers(each, test, given, config)} for name, each in answers.items()
    }
    if not len(test):
        results = {name: {"test": None} for name in given.folders()}
        context.warn("There are no test rows (data.split.test is 0): no test metrics and no gate.")
    gate = judge_newcomer(given, test, answers, config) if len(test) else None
    passed = gate is not None and gate["passed"]
    report(results, gate, context)
    with write_artifact(output, "evaluation", inputs, context) as draft:
        draft.write_json("metrics.json", results)
        draft.write_json("gate.json", gate)
        write_predictions(draft.path / "predictions.parquet", test, given.classes, answers)
        flat = {name: flat_values(result["test"]) for name, result in results.items()}
        draft.metadata.update(
            {"gate": gate, "passed": passed, "metrics": flat, "baseline": baseline_kind(given, answers)}
        )
    assert draft.artifact is not None
    return draft.artifact


def run_language(config: StageConfig, inputs: Mapping[str, Ref], output: str, context: Context) -> Artifact:
    """The same for a language model, on windows of the test tokens."""
    from components.models.predictor import load_predictor

    dataset, model = open_artifact(inputs["dataset"], kind="dataset"), open_artifact(inputs["model"], kind="model")
    tokens, schema = open_tokens(dataset.path, "test"), dataset.read_json("schema.json")
    results: dict[str, Any] = {"trained": {"test": None}}
    kind, predictor = None, load_predictor(model.path)
    seq_len = predictor.values["inputs"]["max_length"]
    if len(tokens) > seq_len:
        bytes_per_token = schema["bytes"]["test"] / len(tokens)
        scores = {"trained": language.score_windows(predictor, tokens, seq_len, context)}
        if config.evaluate.baseline:
            scores["baseline"], order = language.score_ngrams(dataset, tokens, seq_len)
            kind = f"{language.KIND} of order {order}"
        for name, each in scores.items():
            results[name] = {"test": language.measure_windows(each, bytes_per_token, config.evaluate.confidence)}
            tell(name, results[name]["test"], language.describe, context)
    elif len(tokens):
        context.warn(f"The test split has {len(tokens)} tokens, no more than a window of {seq_len}: no test metrics.")
    else:
        context.warn("There is no test text (data.split.test is 0): no test metrics.")
    with write_artifact(output, "evaluation", inputs, context) as draft:
        write_without_gate(draft, results, kind)
    assert draft.artifact is not None
    return draft.artifact


def run_pairs(config: StageConfig, inputs: Mapping[str, Ref], output: str, context: Context) -> Artifact:
    """The same for a model that writes a target for each source."""
    from components.models.predictor import load_predictor

    dataset, model = open_artifact(inputs["dataset"], kind="dataset"), open_artifact(inputs["model"], kind="model")
    test = open_split(dataset.path, "test")
    results: dict[str, Any] = {"trained": {"test": None}}
    texts: dict[str, list[str]] = {}
    kind = None
    if len(test):
        # Written token by token, a test split takes long on one core, and nobody compares its speed here.
        predictor = load_predictor(model.path, threads=len(os.sched_getaffinity(0)))
        measured, texts, kind = pairs.evaluate_pairs(dataset.path, predictor, config.evaluate, config.seed, context)
        results = {name: {"test": each} for name, each in measured.items()}
        for name, each in measured.items():
            tell(name, each, pairs.describe, context)
    else:
        context.warn("There are no test rows (data.split.test is 0): no test metrics.")
    with write_artifact(output, "evaluation", inputs, context) as draft:
        write_without_gate(draft, results, kind)
        pairs.write_texts_file(draft.path / "predictions.parquet", test, texts)
    assert draft.artifact is not None
    return draft.artifact


def tell(name: str, measured: Mapping[str, Any], describe: Callable[..., str], context: Context) -> None:
    """Tells the user and the tracker how a model that writes texts did."""
    flat = flat_values(measured) or {}
    context.track("metrics", step=0, metrics={f"test/{name}/{metric}": value for metric, value in flat.items()})
    context.event("note", metrics=flat, model=name, text=describe(name, measured))


def write_without_gate(draft: Draft, results: Mapping[str, Any], kind: str | None) -> None:
    """The evaluation of a model that nothing releases in this version."""
    draft.write_json("metrics.json", results)
    draft.write_json("gate.json", None)
    by_model = {name: flat_values(result["test"]) for name, result in results.items()}
    draft.metadata.update({"gate": None, "passed": False, "metrics": by_model, "baseline": kind})


def answer_all(given: Given, test: Split, config: StageConfig, context: Context) -> dict[str, Answers]:
    """The answers of every model on the test rows, the baseline last."""
    from components.models.predictor import load_predictor

    labels, answers = test.labels(), {}
    total = len(given.folders()) + config.evaluate.baseline
    for name, folder in given.folders().items():
        predictor = load_predictor(folder)
        # The champion may have been fitted on other data: it starts from the raw rows, by its own preprocessing.
        raw = name == "champion"
        scores = answer_raw_rows(predictor, test, given.task.feature) if raw else answer_rows(predictor, test)
        answers[name] = to_answers(scores, predictor.classes, given.classes, labels)
        context.event("progress", len(answers), total, {"accuracy": accuracy(answers[name], test)}, model=name)
    if config.evaluate.baseline:
        answers["baseline"] = answer_baseline(given, test, config.seed)
        context.event("progress", total, total, {"accuracy": accuracy(answers["baseline"], test)}, model="baseline")
    return answers


def answer_baseline(given: Given, test: Split, seed: int) -> Answers:
    """Fits the linear model on the training rows and lets it answer the test rows."""
    import numpy as np

    from components.evaluate.baseline import Baseline

    train, validation = open_split(given.dataset.path, "train"), open_split(given.dataset.path, "validation")
    preprocessing = given.task.load(given.dataset.path / "preprocess")
    fitted = Baseline(given.task, preprocessing).fit(train, validation, seed)
    log_probabilities = np.log(np.maximum(fitted.probabilities(test, len(given.classes)), 1e-12))
    return to_answers(log_probabilities, given.classes, given.classes, test.labels())


def judge_newcomer(given: Given, test: Split, answers: Mapping[str, Answers], config: StageConfig) -> dict[str, Any]:
    """The gate: compressed against trained, then whichever is to be served against the champion."""
    right = {name: each.predicted == test.labels() for name, each in answers.items()}
    comparisons = []
    if "compressed" in right:
        comparisons.append(Comparison(COMPRESSED, right["compressed"], right["trained"], given.objection()))
    if "champion" in right:
        comparisons.append(Comparison(CHAMPION, right.get("compressed", right["trained"]), right["champion"]))
    return judge(comparisons, len(test), config.accept.max_drop, config.accept.confidence)


def measure_answers(answers: Answers, test: Split, given: Given, config: StageConfig) -> dict[str, Any]:
    options = (config.evaluate.confidence, config.evaluate.resamples, config.seed)
    return measure(answers, test.labels(), given.classes, options)


def accuracy(answers: Answers, test: Split) -> float:
    return float((answers.predicted == test.labels()).mean())


def flat_values(metrics: Mapping[str, Any] | None) -> dict[str, float] | None:
    """Metric values without intervals."""
    return {name: metrics[name]["value"] for name in FLAT_METRICS if name in metrics} if metrics is not None else None


def baseline_kind(given: Given, answers: Mapping[str, Answers]) -> str | None:
    from components.evaluate.baseline import KINDS

    return KINDS[given.task.modality] if "baseline" in answers else None


def report(results: Mapping[str, Mapping[str, Any]], gate: Mapping[str, Any] | None, context: Context) -> None:
    """Tells the user and the tracker how each model did, and the verdict."""
    for name, result in results.items():
        flat = flat_values(result["test"])
        if flat is None:
            continue
        context.track("metrics", step=0, metrics={f"test/{name}/{metric}": value for metric, value in flat.items()})
        (low, high), n = result["test"]["accuracy"]["interval"], result["test"]["n"]
        text = f"{name}: test accuracy {flat['accuracy']:.4f} [{low:.4f}, {high:.4f}], F1 {flat['f1']:.4f} (n = {n})"
        context.event("note", metrics=flat, model=name, text=text)
    if gate is not None:
        context.event("note", text=describe_gate(gate))


def describe_gate(gate: Mapping[str, Any]) -> str:
    """The verdict in one sentence."""
    if not gate["passed"]:
        return f"The gate refuses: {gate['reason']}"
    if gate["difference"] is None:
        return "The gate passes: there is neither a compressed model nor a champion to compare with."
    low, high = gate["interval"]
    return (
        f"The gate passes: {gate['metric']} differs by {gate['difference']:+.4f} [{low:+.4f}, {high:+.4f}], "
        f"tolerance {-gate['tolerance']:+g}, n = {gate['n']}."
    )
