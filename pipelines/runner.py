"""Runs the pipeline of one run folder with `kfp.local`. Run as `python -m pipelines.runner RUN_FOLDER` by the command.

It is a child in a session of its own, because kfp takes over logging and `print` of its process; its output goes to
`logs/runner.log`. It ends with 0 when the pipeline ended, 1 when a stage failed (see `error.json`).
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from pathlib import Path

from components.artifacts import Ref
from components.errors import StageError
from components.memory_kills import count_kills, killed
from pipelines.cache import drop_rotten_entries
from pipelines.graph import build_pipeline
from pipelines.ray_cluster import compute_environment, connect_environment
from pipelines.run_folder import RUN_FOLDER_VARIABLE, RunFacts, RunFolder
from pipelines.spec import Spec
from pipelines.stages import StagePlan, plan_stages
from pipelines.worker import end_with_command, record_error


def main() -> int:
    folder = RunFolder(Path(sys.argv[1]))
    end_with_command(folder)
    facts = folder.facts()
    kills = count_kills()
    # The steps get the signal too and end by themselves.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(130))
    try:
        prepare_environment(folder, Path(facts.home))
        run_pipeline(folder, facts)
        return 0
    except Exception as error:  # noqa: BLE001 (told in error.json)
        traceback.print_exc()
        # A failed step has told why; anything else is told here.
        if not (folder.path / "error.json").exists():
            told = killed("A stage") if count_kills() > kills else unsaid(folder, error)
            record_error(folder, "pipeline", told, folder.path / "logs" / "runner.log")
        return 1


def unsaid(folder: RunFolder, error: Exception) -> Exception:
    """What is told when no stage said why: a process that ended without a word is named, kfp knows only that it did."""
    open_stages = [stage for stage, seconds in folder.begun_stages().items() if seconds is None]
    if not open_stages:
        return error
    stage = open_stages[-1]
    return StageError(
        f"The process of {stage} ended without a word (killed, or crashed in native code); its log is "
        f"{folder.path / 'logs' / stage}.log. The same command goes on from there."
    )


def prepare_environment(folder: RunFolder, home: Path) -> None:
    """Sets what the steps inherit, and brings up Ray unless `RAY_ADDRESS` names a cluster."""
    os.environ[RUN_FOLDER_VARIABLE] = str(folder.path)
    os.environ.update(compute_environment())
    temporary = folder.path / "tmp"
    temporary.mkdir(exist_ok=True)
    # kfp leaks a folder of `mktemp -d` for each task.
    os.environ["TMPDIR"] = str(temporary)
    connect_environment(home)


def planned(folder: RunFolder, facts: RunFacts) -> list[StagePlan]:
    """The stages of a run, from what its folder holds."""
    spec = Spec.model_validate_json((folder.path / "spec.json").read_text())
    champion = Ref(**facts.champion) if facts.champion else None
    history = Ref(**facts.history) if facts.history else None
    return plan_stages(spec, facts.source_digest, facts.tracking_uri, champion, facts.until, history)


def run_pipeline(folder: RunFolder, facts: RunFacts) -> None:
    """Runs the stages; those whose valid result is in the cache are not run again."""
    from kfp import local

    home = Path(facts.home)
    plans = planned(folder, facts)
    drop_rotten_entries(plans, facts, home / "cache" / "kfp")
    local.init(
        runner=local.SubprocessRunner(use_venv=False),
        pipeline_root=str(folder.path / "kfp"),
        enable_caching=True,
        cache_root=str(home / "cache" / "kfp"),
    )
    build_pipeline(plans, facts.code)()


if __name__ == "__main__":
    sys.exit(main())
