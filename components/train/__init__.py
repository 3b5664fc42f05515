"""Training: one loop for one process or many. See README.md."""

from components.train.job import TrainJob, TrainResult, Worker

__all__ = ["TrainJob", "TrainResult", "Worker", "launch", "train"]


def __getattr__(name: str) -> object:
    """Loads `train` and `launch` where they are first used: importing the package loads no torch."""
    import importlib

    if name in ("train", "launch"):
        module = importlib.import_module("components.train.loop" if name == "train" else "components.train.launch")
        return getattr(module, name)
    raise AttributeError(name)
