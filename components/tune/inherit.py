"""Moves checkpoints between trials of a population: a trial goes on from where another one stands."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence

from components.errors import StageError
from components.train.checkpoint import MANIFEST_NAME, CheckpointFolder
from components.train.job import TrainJob
from components.train.result import job_digest
from components.tune.pbt import Exploit
from components.tune.trial import TrialSettings


def inherit_checkpoints(
    settings: TrialSettings, exploits: Sequence[Exploit], warn: Callable[[str], None] = lambda text: None
) -> None:
    """Puts each source's newest checkpoint in the place of its taker's, signed anew for the taker's configuration.

    Doing it twice gives the same: no source is a taker, and none of them runs meanwhile.
    """
    for exploit in exploits:
        source, taker = settings.job(exploit.source, exploit.parent), settings.job(exploit.trial, exploit.config)
        found = open_checkpoints(source).find(warn)
        if found is None:
            raise StageError(
                f"Trial {exploit.trial} was to go on from trial {exploit.source}, which has no checkpoint."
            )
        shutil.rmtree(taker.work_folder, ignore_errors=True)
        target = open_checkpoints(taker)
        partial = target.begin(found.step)
        shutil.copytree(found.folder, partial, dirs_exist_ok=True, ignore=shutil.ignore_patterns(MANIFEST_NAME))
        target.commit(found.step, found.state)


def open_checkpoints(job: TrainJob) -> CheckpointFolder:
    """The checkpoints of a trial on one worker."""
    folder = job.work_folder / "checkpoints"
    return CheckpointFolder(folder, job.key_file, job_digest(job), job.train.workers, job.train.keep_checkpoints)
