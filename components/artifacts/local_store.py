"""Artifacts as local folders. A commit is one rename of a folder whose files are already on the disk.

.NAME.xxxx.partial     a draft: locked by its writer, so that what a killed one left is told apart and removed
.NAME.xxxx.replaced    what lay at NAME before, on file systems that cannot exchange two folders in one step
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import glob
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from components.artifacts.manifest import MANIFEST_NAME, Manifest, parse_manifest, verify_files
from components.errors import ArtifactError

READ_ATTEMPTS = 3
AT_FDCWD, RENAME_EXCHANGE = -100, 2  # <fcntl.h>, <linux/fs.h>


class LocalStore:
    """The store of paths and `file://` URIs."""

    @contextmanager
    def draft(self, uri: str) -> Iterator[Path]:
        target = local_path(uri)
        target.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(target)
        # Beside the target, so that the commit is a rename within one file system.
        folder = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".partial", dir=target.parent))
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(descriptor)

    def commit(self, folder: Path, uri: str, manifest: Manifest) -> Path:
        target = local_path(uri)
        for name in manifest.files:
            sync_path(folder / name)
        write_durably(folder / MANIFEST_NAME, manifest.to_json())
        for parent, _, _ in os.walk(folder):
            sync_path(Path(parent))
        replace_folder(folder, target)
        return target

    def fetch(self, uri: str) -> tuple[Path, Manifest]:
        folder = local_path(uri)
        for _ in range(READ_ATTEMPTS - 1):
            text = read_manifest(folder)
            try:
                return folder, check_folder(folder, text)
            except ArtifactError:
                # Replaced while it was compared: the files are another artifact's, and that one may be whole.
                if text == read_manifest(folder):
                    raise
        return folder, check_folder(folder, read_manifest(folder))

    def exists(self, uri: str) -> bool:
        restore_replaced(local_path(uri))
        return (local_path(uri) / MANIFEST_NAME).is_file()


def read_manifest(folder: Path) -> str:
    """The text of the manifest in `folder`. Raises ArtifactError if there is none."""
    restore_replaced(folder)
    try:
        return (folder / MANIFEST_NAME).read_text()
    except (OSError, ValueError) as error:
        raise ArtifactError(f"No artifact at {folder}: it has no readable {MANIFEST_NAME}.") from error


def check_folder(folder: Path, text: str) -> Manifest:
    """The manifest that `text` holds, after every file in `folder` was compared with it."""
    manifest = parse_manifest(text, str(folder))
    verify_files(folder, manifest, str(folder))
    return manifest


def local_path(uri: str) -> Path:
    return Path(uri.removeprefix("file://")).absolute()


def sync_path(path: Path) -> None:
    """Waits until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder_durably(folder: Path) -> None:
    """Makes a folder and those above it, so that their names outlive a power loss; what was there is left alone."""
    absent = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for path in absent:
        sync_path(path.parent)


def write_durably(path: Path, text: str) -> None:
    """Writes a small file so that a reader sees the old or the new one, also after a power loss."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.write_text(text)
        sync_path(partial)
        partial.rename(path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise
    sync_path(path.parent)


def replace_folder(folder: Path, target: Path) -> None:
    """Puts `folder` in the place of `target`, so that a kill at any moment leaves one of the two there.

    What was at `target` ends up in `folder`, whose owner removes it; a reader that has its files open keeps them.
    """
    if not target.exists():
        folder.rename(target)
    elif not exchange(folder, target):
        while not rename_into(folder, target):
            set_aside(target)
        remove_leftovers(target)
    sync_path(target.parent)


def rename_into(folder: Path, target: Path) -> bool:
    """Renames `folder` to `target`; False if something lies there (a reader may have put back what was set aside)."""
    try:
        folder.rename(target)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        return False
    return True


def exchange(first: Path, second: Path) -> bool:
    """Swaps two folders in one step; False where the system or the file system cannot."""
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        return False
    if renameat2(AT_FDCWD, os.fsencode(first), AT_FDCWD, os.fsencode(second), RENAME_EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
        return False
    raise OSError(number, os.strerror(number), str(second))


def set_aside(target: Path) -> None:
    aside = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".replaced", dir=target.parent))
    target.rename(aside / "old")


def siblings(target: Path, suffix: str) -> list[Path]:
    return list(target.parent.glob(f".{glob.escape(target.name)}.*.{suffix}"))


def restore_replaced(target: Path) -> None:
    """Puts back what was set aside for a replacement that was killed before it took place."""
    if target.exists():
        return
    for aside in siblings(target, "replaced"):
        try:
            (aside / "old").rename(target)
        except OSError:
            continue  # the replacement took place after all, or another reader was faster
        return


def remove_leftovers(target: Path) -> None:
    """Removes drafts of `target` whose writer is gone, and what was set aside for a replacement that took place."""
    restore_replaced(target)
    for path in [*siblings(target, "partial"), *siblings(target, "replaced")]:
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
        except OSError:
            continue  # gone, or no folder of ours
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(path, ignore_errors=True)
        except BlockingIOError:
            continue  # its writer lives
        finally:
            os.close(descriptor)
