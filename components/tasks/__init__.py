"""Tasks by name."""

from __future__ import annotations

from components.errors import SpecError
from components.tasks.base import Preprocessing, Task

TASKS = {
    "image-classification": ("components.tasks.image_classification", "ImageClassification"),
    "text-classification": ("components.tasks.text_classification", "TextClassification"),
    "text-generation": ("components.tasks.text_generation", "TextGeneration"),
    "text2text-generation": ("components.tasks.text2text_generation", "Text2TextGeneration"),
}

__all__ = ["TASKS", "Preprocessing", "Task", "get_task"]


def get_task(name: str) -> Task:
    """The task called `name`.

    Raises:
        SpecError: If there is none of that name.
    """
    import importlib

    if name not in TASKS:
        raise SpecError(f"task is {name!r}; allowed: {', '.join(TASKS)}.", field="task")
    module, attribute = TASKS[name]
    return getattr(importlib.import_module(module), attribute)()
