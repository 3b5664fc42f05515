"""Every file operation of a piece of code: counted, stopped after any one of them, or written down and replayed.

    with Recorder(folder) as whole: save()          # whole.log: what was done, in order
    with Recorder(folder, stop_after=7): save()     # the process "dies" after its seventh operation

A stop is an exception, and from then on every further operation is refused as well: nothing that runs while it travels
up can change the disk, so the disk is left as a SIGKILL would leave it.
"""

from __future__ import annotations

import builtins
import io
import os
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any
from unittest import mock

import safetensors.torch

from components.artifacts import local_store

WRITING = set("wax+")
NAMED = ("mkdir", "rename", "replace", "unlink", "remove", "rmdir", "link")


class Killed(BaseException):
    """Stands for SIGKILL."""


class Recorder:
    """Watches what this process does below a folder.

    Args:
        folder: What is elsewhere is left alone.
        stop_after: Operations that are let pass; None lets all.
        errors: Called before each operation with its kind and path; may raise what the disk is to answer.

    Attributes:
        log: (kind, path, more) of each operation that took place; paths are relative to the folder. `more` is the
            second path of a rename, the bytes of a write.
    """

    def __init__(
        self, folder: Path, stop_after: int | None = None, errors: Callable[[str, Path], None] | None = None
    ) -> None:
        self.folder, self.stop_after, self.errors = folder.resolve(), stop_after, errors
        self.log: list[tuple[str, str, Any]] = []
        self.stack = ExitStack()
        self.killed = False

    def __enter__(self) -> Recorder:
        enter, patch = self.stack.enter_context, mock.patch.object
        for name in NAMED:
            enter(patch(os, name, self._named(name, getattr(os, name))))
        enter(patch(os, "fsync", self._fsync(os.fsync)))
        enter(patch(os, "open", self._os_open(os.open)))
        enter(patch(os, "sendfile", self._sendfile(os.sendfile)))
        for module in (builtins, io):
            enter(patch(module, "open", self._open(io.open)))
        enter(patch(safetensors.torch, "save_file", self._save_file(safetensors.torch.save_file)))
        enter(patch(local_store, "exchange", self._exchange(local_store.exchange)))
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> bool:
        self.stack.close()
        if self.killed:
            close_folders(self.folder)
        # Native code between the stop and here may have put an error of its own in its place.
        return self.killed and kind is not None

    def do(self, kind: str, path: Path, act: Callable[[], Any], more: Any = None) -> Any:
        """One operation: refused after the stop, else done and written down."""
        if not path.is_relative_to(self.folder):
            return act()
        if self.killed or (self.stop_after is not None and len(self.log) >= self.stop_after):
            self.killed = True
            raise Killed
        if self.errors is not None:
            self.errors(kind, path)
        answer = act()
        if callable(more):
            more = more()
        elif isinstance(more, Path):
            more = more.relative_to(self.folder).as_posix()
        self.log.append((kind, path.relative_to(self.folder).as_posix(), more))
        return answer

    def _named(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def act(path: Any, *more: Any, **options: Any) -> Any:
            where = absolute(path, options.get("dir_fd"))
            second = absolute(more[0], None) if name in ("rename", "replace", "link") else None
            return self.do(name, where, lambda: real(path, *more, **options), second)

        return act

    def _fsync(self, real: Callable[..., Any]) -> Callable[..., Any]:
        return lambda descriptor: self.do("fsync", path_of(descriptor), lambda: real(descriptor))

    def _os_open(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def act(path: Any, flags: int, *more: Any, **options: Any) -> Any:
            if not flags & os.O_CREAT:
                return real(path, flags, *more, **options)
            return self.do("create", absolute(path, None), lambda: real(path, flags, *more, **options))

        return act

    def _sendfile(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def act(target: int, source: int, offset: int, count: int) -> int:
            data = os.pread(source, count, offset)
            if not data:
                return real(target, source, offset, count)
            return self.do("write", path_of(target), lambda: real(target, source, offset, count), data)

        return act

    def _open(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def act(file: Any, mode: str = "r", *more: Any, **options: Any) -> Any:
            if not WRITING & set(mode):
                return real(file, mode, *more, **options)
            path = path_of(file) if isinstance(file, int) else absolute(file, None)
            if not path.is_relative_to(self.folder):
                return real(file, mode, *more, **options)
            if isinstance(file, int):
                return Handle(self, path, real(file, mode, *more, **options))
            return Handle(self, path, self.do("create", path, lambda: real(file, mode, *more, **options)))

        return act

    def _save_file(self, real: Callable[..., Any]) -> Callable[..., Any]:
        """Rust writes it; to us these are three operations: made, half written, whole."""

        def act(tensors: Any, filename: Any, *more: Any) -> None:
            path = absolute(filename, None)
            if not path.is_relative_to(self.folder):
                return real(tensors, filename, *more)
            content = safetensors.torch.save(tensors, *more)
            with open(path, "wb") as handle:
                handle.write(content[: len(content) // 2])
                handle.write(content[len(content) // 2 :])
            return None

        return act

    def _exchange(self, real: Callable[..., bool]) -> Callable[..., bool]:
        return lambda first, second: self.do("exchange", absolute(first, None), lambda: real(first, second), second)


class Handle:
    """A file that is written: each write is one operation, and on the disk at once."""

    def __init__(self, recorder: Recorder, path: Path, file: Any) -> None:
        self.recorder, self.path, self.file = recorder, path, file

    def write(self, data: Any) -> int:
        def act() -> int:
            count = self.file.write(data)
            self.file.flush()
            return count

        content = data.encode() if isinstance(data, str) else bytes(data)
        return self.recorder.do("write", self.path, act, content)

    def __enter__(self) -> Handle:
        return self

    def __exit__(self, *error: object) -> None:
        self.file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)


def close_folders(place: Path) -> None:
    """Closes folders that are still open, and with them their locks, as the system does for a process that is gone."""
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):  # the listing's own
            path = path_of(int(name))
            if path.is_relative_to(place) and path.is_dir():
                os.close(int(name))


def absolute(path: Any, folder: int | None) -> Path:
    """Of a path as the os functions take it: a string, bytes or path, maybe relative to an open folder."""
    text = os.fsdecode(path)
    base = path_of(folder) if folder is not None else Path.cwd()
    whole = base / text
    return whole.parent.resolve() / whole.name


def path_of(descriptor: int) -> Path:
    return Path(os.readlink(f"/proc/self/fd/{descriptor}"))
