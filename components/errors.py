"""The errors a user can meet. Each says what was given, what is allowed and what to do, in one sentence.

`exit_code` is what the command line ends with; `kind` is the stable word in `--json` output.
Every class survives pickling, because Ray carries errors across processes.
"""

from __future__ import annotations

import errno


class PenstockError(Exception):
    """Base of every error this project raises on purpose.

    Args:
        message: One sentence for the user.
        field: Dotted name of the spec field at fault (`train.epochs`), if any.
        line: Line in the spec file, counted from 1, if known.
        hint: What to do next, if the message does not already say it.
    """

    kind = "error"
    exit_code = 1

    def __init__(
        self, message: str, field: str | None = None, line: int | None = None, hint: str | None = None
    ) -> None:
        super().__init__(message)
        self.message, self.field, self.line, self.hint = message, field, line, hint

    def __reduce__(self) -> tuple:
        return type(self), (self.message, self.field, self.line, self.hint)

    def as_dict(self) -> dict:
        """The `error` object of the command line's JSON."""
        return {"kind": self.kind, "message": self.message, "field": self.field, "line": self.line, "hint": self.hint}


class SpecError(PenstockError):
    """The spec or the arguments are wrong."""

    kind = "spec"
    exit_code = 2


class DataError(PenstockError):
    """The input data is missing, empty, or not what the spec says (columns, classes, rows)."""

    kind = "data"
    exit_code = 2


class BusyError(PenstockError):
    """Another live process owns the run, the state folder or the port."""

    kind = "busy"
    exit_code = 2


class UnavailableError(PenstockError):
    """A service that was named in the settings cannot be reached (MLflow, Ray, S3)."""

    kind = "unavailable"
    exit_code = 2


class ArtifactError(PenstockError):
    """An artifact is absent, torn, altered or of another kind."""

    kind = "artifact"


class CheckpointError(PenstockError):
    """No checkpoint that can be resumed from, or one of another model."""

    kind = "checkpoint"


class StageError(PenstockError):
    """A stage failed while running."""

    kind = "stage"


class OutOfMemoryError(StageError):
    """A stage needed more memory than there is, or than its container may have."""

    kind = "memory"


class PreemptedError(PenstockError):
    """A training was asked to stop (SIGTERM) and has written a checkpoint: no failure, the same command goes on."""

    kind = "interrupted"
    exit_code = 130


class RequestError(PenstockError):
    """A request to an endpoint that cannot be answered (HTTP 400)."""

    kind = "request"
    exit_code = 2


class DiskFullError(PenstockError):
    """No space is left where a file was to be written."""

    kind = "disk"


def as_disk_full(error: BaseException, place: object) -> DiskFullError | None:
    """What the user is told if an error says that a disk is full or a quota used up; None if it says anything else.

    Args:
        error: Any error.
        place: Named where the error itself names no file.
    """
    if not (isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)):
        return None
    return DiskFullError(
        f"The disk is full ({error.filename or place}); free some space and run the same command again."
    )


def name_error(error: BaseException) -> str:
    """Class and first line of an error: "ValueError: no such thing"."""
    return f"{type(error).__name__}: {first_line(error)}"


def first_line(error: BaseException) -> str:
    """The first line of an error's text, at most 300 characters, without a closing stop."""
    return (str(error).strip().splitlines() or ["no message"])[0].rstrip(".")[:300]
