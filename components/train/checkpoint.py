"""Checkpoints of one run: written whole or not at all, checked before anything in them is read.

    checkpoints/step-00000300/   engine state of every rank, random.rank0.json, best.safetensors, manifest.json
    checkpoints/quarantine/    what failed its check, kept to be looked at
    checkpoints/latest         a hint for people; nothing depends on it

The engine's files may be pickles, so a folder counts only if its manifest, which holds the SHA-256 of each file,
carries an HMAC made with this run's key. The manifest is written last, and the folder gets its name after that.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import re
import secrets
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components.artifacts.local_store import make_folder_durably, replace_folder, sync_path, write_durably
from components.artifacts.manifest import file_sha256, list_files
from components.config import differences
from components.errors import CheckpointError

FORMAT_VERSION = 1
MANIFEST_NAME = "manifest.json"
FENCE_NAME = "fence"
"""In the folder: who may write there; every attempt has a number of its own."""
FIXED = ("task", "model", "train.zero", "train.optimizer.name", "train.ema")
"""What a checkpoint's state depends on: a change of these cannot be accepted."""
MARK_NAME = "written.rank{}"
NAME_PATTERN = re.compile(r"step-(\d{8,})")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that passed its check.

    Attributes:
        folder: Where it lies.
        step: Optimizer steps that were taken.
        world_size: Workers that wrote it.
        state: What the loop keeps: step, round, history, best epoch, precision.
        changes: In what the job that wrote it differs from this one, where that was accepted.
    """

    folder: Path
    step: int
    world_size: int
    state: Mapping[str, Any]
    changes: tuple[str, ...] = ()


class CheckpointFolder:
    """The checkpoints of one run.

    Args:
        folder: Made if absent.
        key_file: The key that authenticates them; made (32 random bytes, mode 0600) if absent.
        owner: Digest of what is trained; a checkpoint of another owner is refused.
        world_size: Workers that write now.
        keep: Newest ones that are kept.
        job: What is trained, in words that a refusal can name.
        accept_changes: Whether one of an owner that differs in other things than the network may be continued.
    """

    def __init__(
        self,
        folder: Path,
        key_file: Path,
        owner: str,
        world_size: int,
        keep: int,
        job: Mapping[str, Any] | None = None,
        accept_changes: bool = False,
    ) -> None:
        self.folder, self.owner, self.world_size, self.keep = folder, owner, world_size, keep
        self.job, self.accept_changes = dict(job or {}), accept_changes
        self.fence = ""
        make_folder_durably(folder)
        self.key = read_key(key_file)

    def path(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}"

    def partial_path(self, step: int) -> Path:
        """Where the ranks of this attempt write before `commit`."""
        return self.folder / f".step-{step:08d}.{self.fence}.partial"

    def take_over(self) -> str:
        """Shuts out every earlier attempt at this job; called by rank 0 alone, the other ranks set `fence` to it.

        A rank that was stopped, and is let go on when its group has long been replaced, finds its folder gone and may
        commit nothing. What it committed before this returns is found by `find`.
        """
        self.fence = secrets.token_hex(8)
        write_durably(self.folder / FENCE_NAME, self.fence)
        for left in (*self.folder.glob(".step-*.partial"), *self.folder.glob(".gone-*")):
            # Renamed in one go: from then on the commit of whoever writes there fails.
            gone = self.folder / f".gone-{secrets.token_hex(8)}"
            with suppress(FileNotFoundError):
                left.rename(gone)
            shutil.rmtree(gone, ignore_errors=True)
        return self.fence

    def check_fence(self) -> None:
        """Before rank 0 writes what all attempts share.

        Raises:
            CheckpointError: If another attempt has taken over.
        """
        if self.fence and (self.folder / FENCE_NAME).read_text() != self.fence:
            raise CheckpointError(
                f"Another process has taken over the training in {self.folder.parent}: this one, which was held up, "
                "writes nothing more and ends."
            )

    def begin(self, step: int) -> Path:
        """An empty folder to write into; called by rank 0 alone. What a killed save left behind goes."""
        self.check_fence()
        for left in self.folder.glob(".step-*.partial"):
            shutil.rmtree(left)
        self.partial_path(step).mkdir()
        return self.partial_path(step)

    def discard(self, step: int) -> None:
        """Removes what was written since `begin`."""
        shutil.rmtree(self.partial_path(step), ignore_errors=True)

    def mark(self, step: int, rank: int) -> None:
        """Notes that a rank wrote its part."""
        (self.partial_path(step) / MARK_NAME.format(rank)).touch()

    def marked(self, step: int, world_size: int) -> bool:
        """Whether all ranks wrote their parts."""
        return all((self.partial_path(step) / MARK_NAME.format(rank)).exists() for rank in range(world_size))

    def commit(self, step: int, state: Mapping[str, Any]) -> Path:
        """Makes what the ranks wrote a checkpoint; called by rank 0 alone, after all have written."""
        partial, target = self.partial_path(step), self.path(step)
        for mark in partial.glob(MARK_NAME.format("*")):
            mark.unlink()
        body = {
            "format_version": FORMAT_VERSION,
            "owner": self.owner,
            "job": self.job,
            "world_size": self.world_size,
            "step": step,
            "state": dict(state),
            "files": {name: seal_file(partial / name) for name in list_files(partial)},
        }
        write_durably(partial / MANIFEST_NAME, json.dumps({"body": body, "hmac": sign(self.key, body)}, indent=1))
        for parent, _, _ in os.walk(partial):
            sync_path(Path(parent))
        self.check_fence()
        replace_folder(partial, target)
        # After the folder is there: it says for ever that checkpoints were written here, which none yet would belie.
        write_durably(self.folder / "latest", target.name)
        self._prune()
        return target

    def find(self, warn: Callable[[str], None]) -> Checkpoint | None:
        """The newest checkpoint that passes its check; called by rank 0 alone. Newer ones are set aside with a warning.

        Returns:
            None only if none was ever written.

        Raises:
            CheckpointError: If there were some, but none passes, or the newest valid one is of another job or world
                size.
        """
        for step in sorted(self.steps(), reverse=True):
            folder = self.path(step)
            reason = self.check(folder)
            if reason is None:
                return self._open(folder)
            aside = self._quarantine(folder)
            warn(f"Checkpoint {folder.name} was set aside ({reason}); looking for the one before. It lies in {aside}.")
        if self._ever_written():
            raise CheckpointError(
                f"{self.folder} held checkpoints, but none that is whole; training does not silently start again: "
                "run with --fresh to start anew."
            )
        return None

    def check(self, folder: Path) -> str | None:
        """Why a checkpoint must not be read, or None when it is whole and of this run's key."""
        try:
            manifest = json.loads((folder / MANIFEST_NAME).read_text())
            body = manifest["body"]
            if not hmac.compare_digest(str(manifest["hmac"]).encode(), sign(self.key, body).encode()):
                return "its manifest does not carry this run's signature"
            if body["format_version"] != FORMAT_VERSION or folder.name != self.path(body["step"]).name:
                return "its manifest belongs to another place or release"
            return check_files(folder, body["files"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            return f"its manifest cannot be read: {type(error).__name__}"

    def steps(self) -> list[int]:
        """Steps of which there is a folder, whole or not."""
        return steps_in(self.folder)

    def newest_bytes(self) -> int:
        """Size of the newest folder, whole or not; 0 if there is none, or another process prunes it meanwhile."""
        newest = max(self.steps(), default=None)
        if newest is None:
            return 0
        try:
            return sum(path.stat().st_size for path in self.path(newest).rglob("*") if path.is_file())
        except FileNotFoundError:
            return 0

    def _open(self, folder: Path) -> Checkpoint:
        body = json.loads((folder / MANIFEST_NAME).read_text())["body"]
        changes: tuple[str, ...] = ()
        if body["owner"] != self.owner:
            changes = tuple(differences(body.get("job", {}), self.job))
            fixed = [change for change in changes if change.startswith(FIXED)]
            told = f"{folder} is a checkpoint of another job: {'; '.join(fixed or changes)}"
            if fixed:
                raise CheckpointError(f"{told}: its state does not fit; undo that, or run with --fresh to start anew.")
            if not self.accept_changes:
                raise CheckpointError(
                    f"{told}; undo that, run with --fresh to start anew, or continue it with --accept-changes "
                    "(python -m components.train)."
                )
        return Checkpoint(folder, body["step"], body["world_size"], body["state"], changes)

    def _quarantine(self, folder: Path) -> Path:
        place = self.folder / "quarantine"
        place.mkdir(exist_ok=True)
        target = place / f"{folder.name}.{secrets.token_hex(4)}"
        folder.rename(target)
        sync_path(self.folder)
        return target

    def _ever_written(self) -> bool:
        return (self.folder / "latest").exists() or (self.folder / "quarantine").exists()

    def _prune(self) -> None:
        for step in sorted(self.steps())[: -self.keep]:
            shutil.rmtree(self.path(step), ignore_errors=True)


def steps_in(folder: Path) -> list[int]:
    """Steps of which a folder of checkpoints holds one, whole or not; none if it is absent."""
    matches = [NAME_PATTERN.fullmatch(path.name) for path in folder.glob("step-*")]
    return [int(match.group(1)) for match in matches if match]


def seal_file(path: Path) -> dict[str, Any]:
    """Waits until a file is on the disk and gives its digest and size."""
    sync_path(path)
    return {"sha256": file_sha256(path), "size_bytes": path.stat().st_size}


def check_files(folder: Path, files: Mapping[str, Mapping[str, Any]]) -> str | None:
    """The first file that is absent, added, of another size or altered; None when all are as written."""
    if set(list_files(folder)) != set(files):
        return "it has other files than its manifest names"
    for name, entry in files.items():
        if (folder / name).stat().st_size != entry["size_bytes"]:
            return f"{name} has another size than its manifest says"
        if file_sha256(folder / name) != entry["sha256"]:
            return f"{name} was altered"
    return None


def sign(key: bytes, body: Mapping[str, Any]) -> str:
    """HMAC-SHA-256, in hex, over the canonical JSON of a manifest's body."""
    content = json.dumps(body, sort_keys=True, separators=(",", ":")).encode()
    return hmac.new(key, content, hashlib.sha256).hexdigest()


def read_key(path: Path) -> bytes:
    """The run's key; made if absent, readable by its owner alone.

    Raises:
        CheckpointError: If the file holds no key of 32 bytes.
    """
    make_folder_durably(path.parent)
    if not path.exists():
        # Linked into place when whole: several workers may come here at once, and a kill must not leave half a key.
        partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as handle:
            handle.write(secrets.token_bytes(32))
        sync_path(partial)
        try:
            os.link(partial, path)
        except FileExistsError:
            pass
        finally:
            partial.unlink()
        sync_path(path.parent)
    key = path.read_bytes()
    if len(key) != 32:
        raise CheckpointError(f"{path} holds no checkpoint key (32 bytes); run with --fresh to start anew.")
    return key
