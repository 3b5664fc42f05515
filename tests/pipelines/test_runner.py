from __future__ import annotations

from pathlib import Path

from components.errors import StageError
from pipelines.runner import unsaid
from tests.builders import make_run_folder


def test_a_stage_that_ended_without_a_word_is_named_with_its_log(tmp_path: Path) -> None:
    folder, error = make_run_folder(tmp_path, "http://127.0.0.1:9"), RuntimeError("kfp knows no more")
    assert unsaid(folder, error) is error
    for stage, kind in [("data", "begin"), ("data", "end"), ("tune", "begin")]:
        folder.context(stage, tmp_path).event(kind, metrics={"seconds": 1.0} if kind == "end" else None)
    told = unsaid(folder, error)
    assert isinstance(told, StageError)
    assert "process of tune ended" in told.message and str(folder.path / "logs" / "tune.log") in told.message
