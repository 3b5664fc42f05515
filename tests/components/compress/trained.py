"""Small trained `model` artifacts for tests, by a plain torch loop of a few seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from components.artifacts import Artifact, write_artifact
from components.artifacts.dataset import open_split
from tests.builders import make_context


def train_model(
    tmp_path: Path, dataset: Artifact, architecture: dict[str, Any], steps: int = 60, seed: int = 0, rate: float = 2e-3
) -> Artifact:
    """A `model` artifact at tmp_path/model-<architecture>, trained on batches of 64 training rows."""
    import numpy as np
    import torch

    from components.models.build import build_model, parse_model_config
    from components.models.folder import model_values, save_model_folder
    from components.tasks import get_task

    task = get_task(dataset.read_json("schema.json")["task"])
    preprocessing = task.load(dataset.path / "preprocess")
    config = parse_model_config(architecture)
    torch.set_num_threads(1)  # on a busy machine two threads wait for each other most of the time
    torch.manual_seed(seed)
    module = build_model(config, preprocessing.model_inputs(), len(preprocessing.classes)).train()
    optimizer = torch.optim.AdamW(module.parameters(), rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=max(steps, 2))
    train, draw = open_split(dataset.path, "train"), np.random.default_rng(seed)
    for _ in range(steps):
        indices = draw.integers(0, len(train), 64)
        batch = {name: torch.as_tensor(array) for name, array in preprocessing.collate(train.take(indices)).items()}
        loss = task.loss(module(**batch), torch.as_tensor(train.labels()[indices]), 0.0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    output = str(tmp_path / f"model-{config.architecture}-{seed}")
    with write_artifact(output, "model", {"dataset": dataset.ref}, make_context(tmp_path, "train")) as draft:
        values = model_values(task.name, config, preprocessing.model_inputs(), preprocessing.classes, module)
        save_model_folder(draft.path, values, preprocessing, module.state_dict())
    assert draft.artifact is not None
    return draft.artifact
