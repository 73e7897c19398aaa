"""What a power loss may leave of files whose calls are known: everything that was synced, and any part of the rest.

The rules, harsher than any file system of Linux:
- A file's bytes are safe once it was synced; a name (made, moved, removed) once its directory was. Until then any
  subset of the changes may be on the disk, whatever their order. A rename is one change.
- A write may be there in part, by sectors of 512 bytes or by pages of 4096; never are bytes around it harmed
  (SQLite's "powersafe overwrite").
- A sync that failed makes the kernel forget what it was to write: readers still see it, no later sync saves it. Only
  a page that is written anew is saved, as a whole.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from random import Random
from typing import NamedTuple

from .layer import Record

SECTOR_BYTES, PAGE_BYTES = 512, 4096
WAYS = ("none", "all", "some writes", "some sectors", "some pages")
Tree = dict[str, bytes]  # files by their path below the root


class Change(NamedTuple):
    """Bytes written at `offset`; None: the file was cut there, or grew to there."""

    offset: int
    data: bytes | None

    def apply(self, content: bytearray) -> None:
        if len(content) < self.offset:
            content.extend(bytes(self.offset - len(content)))
        if self.data is None:
            del content[self.offset :]
        else:
            content[self.offset : self.offset + len(self.data)] = self.data

    def parts(self, size: int) -> Iterable[Change]:
        """Cut where multiples of `size` are."""
        if self.data is None:
            yield self
            return
        begin, end = self.offset, self.offset + len(self.data)
        while begin < end:
            stop = min(end, (begin // size + 1) * size)
            yield Change(begin, self.data[begin - self.offset : stop - self.offset])
            begin = stop


class File:
    def __init__(self, content: bytes = b"") -> None:
        self.durable, self.visible = bytearray(content), bytearray(content)
        self.pending: list[Change] = []
        self._forgotten: set[int] = set()  # pages that only memory holds

    def change(self, change: Change) -> None:
        change.apply(self.visible)
        if change.data is not None and self._forgotten:
            change = self._with_forgotten(change)
        self.pending.append(change)

    def _with_forgotten(self, change: Change) -> Change:
        assert change.data is not None
        begin, end = change.offset, change.offset + len(change.data)
        first, last = begin // PAGE_BYTES, (end - 1) // PAGE_BYTES
        if first in self._forgotten:
            begin = first * PAGE_BYTES
        if last in self._forgotten:
            end = min(len(self.visible), (last + 1) * PAGE_BYTES)
        self._forgotten.difference_update(range(first, last + 1))
        return Change(begin, bytes(self.visible[begin:end]))

    def sync(self) -> None:
        for change in self.pending:
            change.apply(self.durable)
        self.pending.clear()

    def forget(self) -> None:
        """A sync failed. Sizes are the file system's own journal's, not pages."""
        for change in self.pending:
            if change.data is not None:
                end = change.offset + len(change.data)
                self._forgotten.update(range(change.offset // PAGE_BYTES, (end - 1) // PAGE_BYTES + 1))
        self.pending = [change for change in self.pending if change.data is None]

    def left(self, way: str, dice: Random) -> bytes:
        content = bytearray(self.durable)
        part_bytes = {"some sectors": SECTOR_BYTES, "some pages": PAGE_BYTES}.get(way)
        likely = dice.choice((0.1, 0.5, 0.9))
        for change in self.pending if way != "none" else ():
            for part in change.parts(part_bytes) if part_bytes else (change,):
                if way == "all" or dice.random() < likely:
                    part.apply(content)
        return bytes(content)


class Rename(NamedTuple):
    """A name that is given to a file, taken away (no file), or moved (`to`)."""

    path: str
    file: File | None = None
    to: str | None = None

    @property
    def directories(self) -> set[str]:
        return {str(Path(path).parent) for path in (self.path, self.to) if path}

    def apply(self, names: dict[str, File]) -> None:
        if self.file:
            names[self.path] = self.file
        elif (file := names.pop(self.path, None)) and self.to:
            names[self.to] = file


class Platter:
    """The files below `root`, as their calls go by."""

    def __init__(self, root: Path, tree: Tree) -> None:
        self._root = str(root)
        self._durable = {path: File(content) for path, content in tree.items()}
        self._durable |= {f"{parent}/": File() for path in tree for parent in Path(path).parents[:-1]}
        self._visible = dict(self._durable)
        self._pending: list[Rename] = []
        self._open: dict[int, File | str] = {}  # or a directory

    def step(self, record: Record) -> bool:
        """Takes a call; whether another disk may be left after it than before it."""
        match record.op:
            case "o":
                self._opened(record)
            case "c":
                self._open.pop(record.fd)
            case "w":
                self._file(record.fd).change(Change(record.offset, record.data))
            case "t":
                self._file(record.fd).change(Change(record.offset, None))
            case "s":
                self._sync(record.fd)
            case "f":
                self._file(record.fd).forget()
            case "u":
                self._rename(Rename(self._path(record.data)))
            case "r":
                path, to = record.data.split(b"\n")
                self._rename(Rename(self._path(path), None, self._path(to)))
            case "d":
                self._visible[f"{self._path(record.data)}/"] = made = File()
                self._pending.append(Rename(f"{self._path(record.data)}/", made))
        return record.op not in "oc" or bool(self._pending)

    def die(self) -> None:
        """The process ends; what it wrote stays with the kernel."""
        self._open.clear()

    def _path(self, path: bytes) -> str:
        return path.decode().removeprefix(self._root).removeprefix("/")

    def _file(self, fd: int) -> File:
        found = self._open[fd]
        return found if isinstance(found, File) else File()  # a directory: its sync failed, which changes nothing

    def _opened(self, record: Record) -> None:
        path = self._path(record.data)
        if not path or f"{path}/" in self._visible:
            self._open[record.fd] = path or "."
            return
        if path not in self._visible:
            self._rename(Rename(path, File()))
        file = self._open[record.fd] = self._visible[path]
        if record.offset:
            file.change(Change(0, None))

    def _rename(self, rename: Rename) -> None:
        rename.apply(self._visible)
        self._pending.append(rename)

    def _sync(self, fd: int) -> None:
        found = self._open[fd]
        if isinstance(found, File):
            found.sync()
            return
        for rename in [one for one in self._pending if found in one.directories]:
            rename.apply(self._durable)
            self._pending.remove(rename)

    def left(self, way: str, dice: Random) -> Tree:
        """One of the disks that may be there after a power loss at this point."""
        names = dict(self._durable)
        likely = {"none": 0.0, "all": 1.0}.get(way, dice.choice((0.1, 0.5, 0.9)))
        for rename in self._pending:
            if dice.random() < likely:
                rename.apply(names)
        return _reachable({path: file.left(way, dice) for path, file in names.items()})

    @property
    def seen(self) -> Tree:
        """What a reader sees now."""
        return _reachable({path: bytes(file.visible) for path, file in self._visible.items()})


def _reachable(tree: Tree) -> Tree:
    """Without what stands in a directory whose own name is lost, and without directories."""
    return {
        path: content
        for path, content in tree.items()
        if not path.endswith("/") and all(f"{parent}/" in tree for parent in Path(path).parents[:-1])
    }


def write(root: Path, tree: Tree) -> None:
    """Makes the files below `root`, which is there and empty, these."""
    for path, content in tree.items():
        (root / path).parent.mkdir(exist_ok=True)
        (root / path).write_bytes(content)


def lies(root: Path) -> Tree:
    """What lies there."""
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}
