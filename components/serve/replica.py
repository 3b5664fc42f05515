"""One copy of the model inside Ray Serve: verifies the artifact, loads it, answers its golden sample, then serves."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.artifacts import Artifact, Ref, open_artifact
from components.artifacts.manifest import list_files
from components.errors import ArtifactError, SpecError, StageError
from components.serve.protocol import ModelIdentity
from components.tasks import get_task
from components.tasks.classification import ClassPreprocessing

if TYPE_CHECKING:
    import numpy as np
    from starlette.types import ASGIApp

    from components.models.predictor import Predictor
    from components.serve.config import DeployConfig

# Nothing else is loaded, and nothing that could be a pickle.
ALLOWED_SUFFIXES = (".safetensors", ".onnx", ".json")
# Same file, same library, same machine type: rounding differs by the batch and the thread count only.
GOLDEN_TOLERANCE = 1e-2


@dataclass(frozen=True)
class ReplicaConfig:
    """What a replica is started with. Plain values, because Ray carries them to another process.

    Attributes:
        model: The model artifact; its digest is checked before anything is loaded.
        golden: Inputs as in `/v1/predict`, and the logits that they must give: the replica is not ready before.
        keys_file: File of API keys, or None on loopback.
    """

    name: str
    version: str
    model: Ref
    golden_inputs: tuple[Any, ...]
    golden_logits: tuple[tuple[float, ...], ...]
    max_batch_size: int
    batch_wait_ms: float
    max_body_bytes: int
    threads: int
    keys_file: str | None


class Replica:
    """The Serve deployment's class: the engine behind the routes of application.py."""

    def __init__(self, config: ReplicaConfig) -> None:
        from components.models.predictor import load_predictor

        artifact = open_servable(config.model)
        self.config = config
        self.identity = ModelIdentity(config.name, config.version, artifact.digest)
        self.predictor = load_predictor(artifact.path, config.threads)
        assert isinstance(self.predictor.preprocessing, ClassPreprocessing), "check_answers_classes refuses all others"
        self.preprocessing = self.predictor.preprocessing
        check_golden(self.predictor, config)
        self._batched = batch_function(self, config)

    def __serve_build_asgi_app__(self) -> ASGIApp:
        """Called by Serve once the constructor is through."""
        from components.serve.application import build_application
        from components.serve.guard import Guard
        from components.serve.keys import KeyRing

        keys = KeyRing(Path(self.config.keys_file)) if self.config.keys_file else None
        return build_application(self, self.config.max_body_bytes, Guard(keys))

    async def logits(self, encoded: Mapping[str, list[Any]]) -> np.ndarray:
        """Logits (B, classes) of one request's rows, computed together with what other requests bring."""
        return await self._batched(encoded)

    async def answer_batch(self, requests: list[Mapping[str, list[Any]]]) -> list[np.ndarray]:
        """Logits of each of several requests. A thread computes, so that the event loop goes on reading."""
        return await asyncio.to_thread(self.compute, requests)

    def compute(self, requests: list[Mapping[str, list[Any]]]) -> list[np.ndarray]:
        """Logits of each request, computed in batches of at most `max_batch_size` rows."""
        import numpy as np

        columns = {name: [value for request in requests for value in request[name]] for name in requests[0]}
        counts = [row_count(request) for request in requests]
        size, rows = self.config.max_batch_size, sum(counts)
        parts = [
            self.predictor.logits(
                self.preprocessing.collate({name: values[start : start + size] for name, values in columns.items()})
            )
            for start in range(0, rows, size)
        ]
        return np.split(np.concatenate(parts), np.cumsum(counts)[:-1])


def row_count(encoded: Mapping[str, list[Any]]) -> int:
    return len(next(iter(encoded.values())))


def batch_function(replica: Replica, config: ReplicaConfig) -> Any:
    """`answer_batch` behind Serve's dynamic batching; with batches of one there is nothing to wait for."""
    from ray import serve

    if config.max_batch_size == 1:

        async def alone(encoded: Mapping[str, list[Any]]) -> np.ndarray:
            return (await replica.answer_batch([encoded]))[0]

        return alone

    async def batched(requests: list[Mapping[str, list[Any]]]) -> list[np.ndarray]:
        return await replica.answer_batch(requests)

    collect = serve.batch(max_batch_size=config.max_batch_size, batch_wait_timeout_s=config.batch_wait_ms / 1000)
    return collect(batched)


def open_servable(ref: Ref | str) -> Artifact:
    """Opens a model that is to be served: every file matches the manifest and is of a kind that holds no code.

    Raises:
        ArtifactError: If it is altered, absent, no model, or holds a file of another kind.
    """
    artifact = open_artifact(ref, kind="model")
    for name in list_files(artifact.path):
        if not name.endswith(ALLOWED_SUFFIXES):
            raise ArtifactError(
                f"{artifact.uri} holds {name}; a served model holds {', '.join(ALLOWED_SUFFIXES)} files only."
            )
    return artifact


def check_answers_classes(artifact: Artifact) -> None:
    """Refuses a model that writes texts: no endpoint serves one in this version.

    Raises:
        SpecError: Saying so, and what answers instead.
    """
    from components.models.folder import read_model_values

    task = read_model_values(artifact.path)["task"]
    if get_task(task).generative:
        raise SpecError(
            f"{artifact.uri} is a {task} model, which no endpoint serves in this version; ask it with penstock predict."
        )


def golden_sample(predictor: Predictor) -> list[Any]:
    """Two fixed inputs made from the model's signature: what they are does not matter, only that answers agree."""
    import numpy as np

    [tensor] = predictor.preprocessing.signature()
    if tensor["datatype"] == "BYTES":
        return ["a penstock carries water to a turbine", "gate"]
    shape = [8 if size < 0 else size for size in tensor["shape"][1:]]
    return np.random.default_rng(0).integers(0, 17, size=[2, *shape]).tolist()


def run_locally(predictor: Predictor, inputs: list[Any]) -> np.ndarray:
    """Logits (B, classes) of inputs as in `/v1/predict`, in this process."""
    preprocessing = predictor.preprocessing
    return predictor.logits(preprocessing.collate(preprocessing.encode(preprocessing.parse_inputs(inputs))))


def check_golden(predictor: Predictor, config: ReplicaConfig) -> None:
    """Compares the answer to the golden sample with the one at deployment.

    Raises:
        StageError: If it differs: this process would not answer as the model that was tested.
    """
    import numpy as np

    expected = np.asarray(config.golden_logits)
    given = run_locally(predictor, list(config.golden_inputs))
    scale = max(1.0, float(np.abs(expected).max()))
    if given.shape != expected.shape or not np.isfinite(given).all():
        raise StageError("The model's answer to its golden sample is not finite or has another shape.")
    difference = float(np.abs(given - expected).max()) / scale
    if difference > GOLDEN_TOLERANCE:
        raise StageError(f"The model's answer to its golden sample is off by {difference:.2g} of its scale.")


def replica_config(
    artifact: Artifact, name: str, version: str, deploy: DeployConfig, keys_file: Path | None
) -> ReplicaConfig:
    """What the replicas of `artifact` are started with; the golden answers are computed here."""
    from components.models.predictor import load_predictor

    predictor = load_predictor(artifact.path, deploy.threads)
    inputs = golden_sample(predictor)
    return ReplicaConfig(
        name=name,
        version=version,
        model=artifact.ref,
        golden_inputs=tuple(inputs),
        golden_logits=tuple(tuple(float(value) for value in row) for row in run_locally(predictor, inputs)),
        max_batch_size=deploy.max_batch_size,
        batch_wait_ms=deploy.batch_wait_ms,
        max_body_bytes=int(deploy.max_body_mib * (1 << 20)),
        threads=deploy.threads,
        keys_file=str(keys_file) if keys_file else None,
    )
