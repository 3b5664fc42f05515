"""The `data` section of the spec."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from components.config import Config
from components.tasks.config import FeatureConfig


class ColumnsConfig(Config):
    """Which column of the source plays which role. Image folders need none."""

    text: str = "text"
    """Column with the text of a sample."""
    source: str = "source"
    """Column with the text that a target is written for."""
    target: str = "target"
    """Column with the text that is to be written."""
    image: str = "image"
    """Column with the encoded image, or the path of one."""
    label: str = "label"
    """Column with the class of a sample."""


class SplitConfig(Config):
    """How rows are divided. Shares are of the rows that are left after cleaning."""

    by: Literal["random", "position", "group", "time"] = "random"
    """random: by (seed, row digest), stratified by class. position: in file order. group: whole. time: old first."""
    validation: float = Field(0.1, gt=0, lt=1)
    """Share of the rows used to choose."""
    test: float = Field(0.1, ge=0, lt=1)
    """Share of the rows used once, at the end; 0 gives no test metrics and no gate."""
    seed: int = 0
    """Seed of the split alone."""
    column: str | None = None
    """Column to group by (`by: group`) or to sort by (`by: time`)."""

    @model_validator(mode="after")
    def _rules(self) -> SplitConfig:
        if self.validation + self.test >= 1:
            raise ValueError(f"validation {self.validation} and test {self.test} leave no rows to train on; lower them")
        if self.by in ("group", "time") and self.column is None:
            raise ValueError(f"split by {self.by} needs `column`")
        return self


class DataConfig(FeatureConfig):
    """Where the data comes from and how it is cleaned and split."""

    source: str
    """A .csv, .jsonl, .parquet or .txt file, an image folder by class, a glob of them, s3://..., builtin://digits or
    builtin://python-stdlib."""
    columns: ColumnsConfig = ColumnsConfig()
    split: SplitConfig = SplitConfig()
    clean: tuple[Literal["drop-missing", "deduplicate"], ...] = ("drop-missing", "deduplicate")
    """Cleaning steps, in order."""
    rare: Literal["refuse", "drop"] = "refuse"
    """What happens to a class with fewer than three rows."""
    max_corrupt: float = Field(0.01, ge=0, le=1)
    """Share of unreadable samples that are dropped and reported; more than this is an error."""
