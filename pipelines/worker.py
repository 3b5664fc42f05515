"""Runs one stage inside its pipeline step: where it writes, who may stop it, and how its end is told.

A step's life is tied to the command: the command holds the run's lock, and the kernel drops it however the command
dies. A thread here sees that and ends the process, so that no stage trains on for nobody.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from components.artifacts import Artifact, Ref, open_artifact
from components.artifacts.local_store import write_durably
from components.errors import ArtifactError, BusyError, PenstockError, StageError, as_disk_full, name_error
from components.evaluate.gate import CHAMPION as AGAINST_CHAMPION
from components.ray_connection import joining
from pipelines.graph import CHALLENGER, CHAMPION, REFUSED
from pipelines.identity import stage_key
from pipelines.processes import FileLock
from pipelines.ray_cluster import RayCluster, connect_environment, has_died, keeper_log
from pipelines.run_folder import OWNER_VARIABLE, RUN_FOLDER_VARIABLE, RunFolder
from pipelines.stages import KINDS, MODULES, NOT_CACHED, resolve_inputs

NEED_RAY = frozenset({"data", "tune", "train", "deploy"})
LOCK_POLL_S = 0.5
RAY_POLL_S = 0.5
ORPHAN_WAIT_S = 5.0


def main(stage: str, config: str, inputs: str, code: str) -> str:
    """Runs a stage as a pipeline step; returns the JSON of the artifact's Ref.

    A failure is told in `error.json`, and with its traceback in the stage's log, before the process ends with 1.
    """
    folder = RunFolder(Path(os.environ[RUN_FOLDER_VARIABLE]))
    log = folder.path / "logs" / f"{stage}.log"
    redirect_output(log)
    end_with_command(folder)
    try:
        if stage in NEED_RAY:
            home = Path(folder.facts().home)
            cluster = connect_environment(home)
            if cluster is not None:
                end_with_ray(folder, stage, home, cluster, log)
        return run_stage(folder, stage, config, inputs, code).ref.to_json()
    except Exception as error:  # noqa: BLE001 (told in error.json)
        traceback.print_exc()
        record_error(folder, stage, error, log)
        sys.exit(1)


def run_stage(folder: RunFolder, stage: str, config: str, inputs: str, code: str) -> Artifact:
    """Runs a stage in this process, reporting its begin and end; shared by pipeline steps and `--debug`.

    What an earlier attempt has made already is handed on without an event: to its readers the stage was cached.
    """
    facts = folder.facts()
    key = stage_key(stage, config, inputs, code)
    output = f"{facts.artifact_root}/{stage}/{key}"
    work_folder = Path(facts.home) / "work" / stage / key
    work_folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    context = folder.context(stage, work_folder)
    owner = FileLock(work_folder / "lock")
    if not owner.acquire(wait_s=ORPHAN_WAIT_S):
        raise BusyError(f"Process {owner.holder()} is running this same {stage}; wait for it, or end it.")
    try:
        made = reuse(stage, output)
        if made is not None:
            return made
        context.event("begin")
        started = time.monotonic()
        artifact = _run(stage, config, resolve_inputs(inputs), output, context)
        context.event("end", metrics={"seconds": time.monotonic() - started}, uri=artifact.uri, digest=artifact.digest)
        return artifact
    finally:
        owner.release()


def _run(stage: str, config: str, refs: Mapping[str, Ref], output: str, context: Any) -> Artifact:
    module = importlib.import_module(MODULES[stage])
    stage_config = module.StageConfig.model_validate_json(config)
    return module.run(stage_config, refs, output, context)


def reuse(stage: str, output: str) -> Artifact | None:
    """The artifact of an earlier attempt that was killed between committing it and telling kfp."""
    if stage in NOT_CACHED:
        return None
    try:
        return open_artifact(output, kind=KINDS[stage])
    except ArtifactError:
        return None


def redirect_output(log: Path) -> None:
    """Sends everything this process and its libraries print to the stage's log."""
    log.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)


def end_with_command(folder: RunFolder) -> None:
    """Starts the thread that ends this process when the command that owns the run is gone.

    The lock held by another command says so too: that one was started in between and has taken the run over.
    """
    lock = folder.lock()
    owner = os.environ.get(OWNER_VARIABLE) or lock.holder()

    def watch() -> None:
        while lock.holder() == owner and not lock.acquire(shared=True):
            time.sleep(LOCK_POLL_S)
        print("The command that started this run is gone; ending.", flush=True)
        os._exit(1)

    threading.Thread(target=watch, name="end-with-command", daemon=True).start()


def end_with_ray(folder: RunFolder, stage: str, home: Path, cluster: RayCluster, log: Path) -> None:
    """Starts the thread that ends this process when the local Ray that it uses is gone.

    A driver would wait for a head that never comes back. One that has not joined, or left again, does not care.
    """

    def watch() -> None:
        while not (has_died(home, cluster) and uses_ray()):
            time.sleep(RAY_POLL_S)
        record_error(folder, stage, ray_lost(stage, home), log)
        print("The local Ray is gone; ending.", flush=True)
        os._exit(1)

    threading.Thread(target=watch, name="end-with-ray", daemon=True).start()


def uses_ray() -> bool:
    # Another thread may be in the middle of its import.
    is_initialized = getattr(sys.modules.get("ray"), "is_initialized", None)
    return joining.is_set() or (is_initialized is not None and is_initialized())


def ray_lost(stage: str, home: Path) -> StageError:
    return StageError(
        f"The local Ray died while {stage} ran (its output is in {keeper_log(home)}); run the same command again: it "
        "starts another and goes on from here."
    )


def record_error(folder: RunFolder, stage: str, error: Exception, log: Path) -> None:
    """Writes why the run failed as one sentence; the traceback is in the log."""
    ours = error if isinstance(error, PenstockError) else as_disk_full(error, place=folder.path)
    if ours is not None:
        record, exit_code = ours.as_dict(), ours.exit_code
    else:
        message = f"{stage} failed: {name_error(error)}."
        record, exit_code = {"kind": "internal", "message": message, "field": None, "line": None, "hint": None}, 1
    record = {**record, "stage": stage, "log": str(log), "exit_code": exit_code}
    write_durably(folder.path / "error.json", json.dumps(record))


def read_verdict(evaluation: str) -> str:
    """What the gate lets the newcomer become: `refused`, `challenger` or `champion`."""
    ref = Ref.from_json(evaluation)
    return verdict(open_artifact(ref, kind="evaluation").manifest.metadata.get("gate"))


def verdict(gate: Mapping[str, Any] | None) -> str:
    """Refused unless the compressed model held; only a challenger if it is inferior to the live champion."""
    if gate is None:
        return REFUSED
    if gate["passed"]:
        return CHAMPION
    failed = {part["name"] for part in gate["parts"] if not part["passed"]}
    return CHALLENGER if failed == {AGAINST_CHAMPION} else REFUSED
