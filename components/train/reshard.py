"""A checkpoint of n workers for m of them: ZeRO's shards are put together and divided anew.

DeepSpeed's universal format holds each parameter's weights and optimizer state whole, by name; its engine takes its own
part of each (Lian et al. 2024, https://arxiv.org/abs/2406.18820).
"""

from __future__ import annotations

import contextlib
import io
import shutil
from argparse import Namespace
from pathlib import Path

from components.errors import CheckpointError, name_error


def make_universal(folder: Path, target: Path) -> None:
    """Writes DeepSpeed's state in `folder` (one that was verified: it holds pickles) in the universal format.

    Args:
        folder: With one folder of DeepSpeed's below it.
        target: Replaced; gets a folder of the same name.

    Raises:
        CheckpointError: If it cannot be converted.
    """
    from deepspeed.checkpoint.ds_to_universal import main

    from components.train.deepspeed_engine import COMMON_NAME, TAG

    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    options = Namespace(
        input_folder=str(folder / TAG),
        output_folder=str(target / TAG),
        num_extract_workers=1,
        num_merge_workers=1,
        keep_temp_folder=False,
        strict=True,
        inject_missing_state=True,
    )
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            main(options)
        shutil.copyfile(folder / COMMON_NAME, target / COMMON_NAME)
    except Exception as error:  # whatever it stumbles over, the user needs one sentence
        raise CheckpointError(
            f"{folder} cannot be divided among other workers ({name_error(error)}); set train.workers back, "
            "or run with --fresh to start anew."
        ) from error
