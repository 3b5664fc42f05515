"""Real artifacts for tests, made by the real stages in the quickest way."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from components.artifacts import Artifact
from components.context import Context
from pipelines.run_folder import RunFacts, RunFolder

DIGITS = "builtin://digits"


def make_context(tmp_path: Path, stage: str = "test", **more: Any) -> Context:
    """A context whose folders lie below `tmp_path`; everything in this process unless `debug=False`."""
    home, run_folder, work_folder = tmp_path / "home", tmp_path / "run", tmp_path / "work" / stage
    for folder in (home, run_folder, work_folder):
        folder.mkdir(parents=True, exist_ok=True)
    settings = {"debug": True, **more}
    return Context("test-run", stage, home, run_folder, work_folder, **settings)


def make_run_folder(home: Path, tracking_uri: str, offline: bool = False) -> RunFolder:
    """A run's folder without the command that would own it, nor anything that it would have made."""
    folder = RunFolder(home / "runs" / "tiny-0001")
    where = {"home": str(home), "artifact_root": str(home / "artifacts"), "tracking_uri": tracking_uri}
    what = dict.fromkeys(("identity", "spec_sha256", "code_version", "source_digest", "code"), "none")
    folder.create(RunFacts(run_id=folder.run_id, **where, **what, offline=offline), "{}")
    return folder


def build_dataset(tmp_path: Path, source: str = DIGITS, rows: int | None = None, **data_overrides: Any) -> Artifact:
    """A Dataset by the data stage, in this process.

    Args:
        tmp_path: Folder for everything.
        source: As `data.source`; builtin://digits is image classification, all else text unless `task` is given.
        rows: Only the first rows of the digits.
        data_overrides: Fields of the `data` section (`split={"test": 0.25}`), and `task`.
    """
    from components.data.stage import StageConfig, run

    images = source == DIGITS
    task = data_overrides.pop("task", "image-classification" if images else "text-classification")
    if images and rows is not None:
        source = str(write_digits(tmp_path / f"digits-{rows}.parquet", rows))
    config = StageConfig.model_validate({"task": task, "data": {"source": source, **data_overrides}})
    return run(config, {}, str(tmp_path / "dataset"), make_context(tmp_path, "data"))


def write_digits(path: Path, rows: int) -> Path:
    """The first digits as a Parquet table with encoded images."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from components.data.config import DataConfig
    from components.data.preflight import plan_roles
    from components.data.read import read_unit
    from components.data.source import find_source
    from components.data.units import plan_units

    source = find_source(DIGITS)
    roles = plan_roles(source, "image-classification", DataConfig(source=DIGITS))
    table = pa.concat_tables(read_unit(plan_units(source)[0], roles)).slice(0, rows)
    pq.write_table(pa.table({"image": table["feature"], "label": table["label"]}), path)
    return path


def png(pixels: Any) -> bytes:
    """PNG bytes of a uint8 array."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()
