"""What the workers of `ranks.py` need, imported once in the process they are forked from."""

import importlib

from components.train.deepspeed_engine import _import_deepspeed

for name in (
    "components.train.loop",
    "components.train.torch_engine",
    "components.tasks.image_classification",
    "deepspeed.checkpoint.ds_to_universal",
    "tests.components.train.jobs",
):
    importlib.import_module(name)
_import_deepspeed("cpu")
