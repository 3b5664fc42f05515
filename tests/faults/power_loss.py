"""What a disk may hold after a power loss, from the log of the operations that led to it.

The model is the weakest that POSIX allows: a file's bytes are safe once it was synced, a name (made, renamed or
removed) once its folder was. Of everything else any part may be there: names in any combination, of a file's bytes the
old ones, the new ones, or a beginning of them.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any


@dataclass
class File:
    """A file: its bytes now, and those that are safe (None: not even its length is)."""

    now: bytes = b""
    safe: bytes | None = None


@dataclass
class Folder:
    """A folder: its names now, and what happened to them since they were last synced."""

    now: dict[str, Node] = field(default_factory=dict)
    safe: dict[str, Node] = field(default_factory=dict)
    pending: list[Change] = field(default_factory=list)


Node = File | Folder


@dataclass(eq=False)
class Change:
    """One change of names: some vanish and some appear, all or none of them.

    Attributes:
        parts: (folder, name, node or None if it is removed).
    """

    parts: list[tuple[Folder, str, Node | None]]
    order: int


class Disk:
    """The disk while a log is replayed on it.

    Args:
        before: A folder; all in it is safe.
    """

    def __init__(self, before: Path) -> None:
        self.root = read_tree(before)
        self.order = 0

    def replay(self, operation: tuple[str, str, Any]) -> None:
        """One entry of `Recorder.log`."""
        kind, path, more = operation
        folder, name = self.find(PurePosixPath(path).parent), PurePosixPath(path).name
        if kind == "create":
            if isinstance(there := folder.now.get(name), File):
                there.now = b""
            else:
                self.change([(folder, name, File())])
        elif kind == "write":
            file = folder.now[name]
            assert isinstance(file, File)
            file.now += more
        elif kind == "fsync":
            sync(self.find_node(PurePosixPath(path)))
        elif kind == "mkdir":
            self.change([(folder, name, Folder())])
        elif kind in ("unlink", "remove", "rmdir"):
            self.change([(folder, name, None)])
        else:
            self._move(kind, folder, name, PurePosixPath(more))

    def _move(self, kind: str, folder: Folder, name: str, target: PurePosixPath) -> None:
        other, node = self.find(target.parent), folder.now[name]
        if kind == "link":
            self.change([(other, target.name, node)])
        elif kind == "exchange":
            self.change([(folder, name, other.now[target.name]), (other, target.name, node)])
        else:
            self.change([(folder, name, None), (other, target.name, node)])

    def change(self, parts: list[tuple[Folder, str, Node | None]]) -> None:
        self.order += 1
        change = Change(parts, self.order)
        for folder, name, node in parts:
            put(folder.now, name, node)
            folder.pending.append(change)

    def find_node(self, path: PurePosixPath) -> Node:
        node: Node = self.root
        for part in path.parts:
            assert isinstance(node, Folder)
            node = node.now[part]
        return node

    def find(self, path: PurePosixPath) -> Folder:
        node = self.find_node(path)
        assert isinstance(node, Folder)
        return node

    def write_survivors(self, target: Path, chance: random.Random, share: float) -> None:
        """Makes a folder of what may be left.

        Args:
            target: Made; must be absent.
            chance: Decides what is left of what is not safe.
            share: Of it, how much is likely to be left: 0 none, 1 all.
        """
        kept = {id(change): chance.random() < share for change in self._pending(self.root, set())}
        write_survivors(self.root, target, kept, chance, share)

    def _pending(self, folder: Folder, seen: set[int]) -> list[Change]:
        if id(folder) in seen:
            return []
        seen.add(id(folder))
        nodes = [*folder.safe.values(), *folder.now.values()]
        nodes += [node for change in folder.pending for _, _, node in change.parts if node is not None]
        below = [change for node in nodes if isinstance(node, Folder) for change in self._pending(node, seen)]
        return [*folder.pending, *below]


def put(names: dict[str, Node], name: str, node: Node | None) -> None:
    if node is None:
        names.pop(name, None)
    else:
        names[name] = node


def sync(node: Node) -> None:
    if isinstance(node, File):
        node.safe = node.now
        return
    for change in sorted(node.pending, key=lambda change: change.order):
        for folder, name, other in change.parts:
            put(folder.safe, name, other)  # a rename is one change, in both of its folders
            if folder is not node:
                folder.pending.remove(change)
    node.pending.clear()


def read_tree(folder: Path) -> Folder:
    """A folder all of which is safe."""
    names: dict[str, Node] = {}
    for path in folder.iterdir():
        if path.is_dir():
            names[path.name] = read_tree(path)
        else:
            content = path.read_bytes()
            names[path.name] = File(content, content)
    return Folder(dict(names), dict(names))


def write_survivors(node: Node, target: Path, kept: dict[int, bool], chance: random.Random, share: float) -> None:
    if isinstance(node, File):
        target.write_bytes(surviving_bytes(node, chance, share))
        return
    target.mkdir()
    names = dict(node.safe)
    for change in node.pending:
        if kept[id(change)]:
            for folder, name, other in change.parts:
                if folder is node:
                    put(names, name, other)
    for name, other in names.items():
        write_survivors(other, target / name, kept, chance, share)


def surviving_bytes(file: File, chance: random.Random, share: float) -> bytes:
    if file.safe == file.now or chance.random() < share:
        return file.now
    if share == 0:
        return file.safe or b""
    return chance.choice([file.safe or b"", file.now[: chance.randrange(len(file.now) + 1)], bytes(len(file.now))])


def losses(
    before: Path, log: Sequence[tuple[str, str, Any]], folder: Path, chance: random.Random, draws: int, every: int = 1
) -> list[tuple[int, Path]]:
    """For a power loss after each operation, or `every` so many: (operations done, what is left).

    What is left of what is not safe is nothing, all, and so many draws of a part.
    """
    disk, left = Disk(before), []
    for done in range(len(log) + 1):
        for number, share in enumerate([0.0, 1.0, *[0.5] * draws] if done % every == 0 else []):
            target = folder / f"{done}-{number}"
            disk.write_survivors(target, chance, share)
            left.append((done, target))
        if done < len(log):
            disk.replay(log[done])
    return left
