"""What the workers of `ranks.py` need, imported once in the process they are forked from."""

from components.train.deepspeed_engine import _import_deepspeed

_import_deepspeed("cpu")
