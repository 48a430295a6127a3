"""What a disk may hold after a power failure, at any moment of what was recorded (`tests.support.recorded_disk`).

    cuts = PowerCuts(disk)                            # before anything is recorded: what there is, is on disk
    for cut in cuts.at(positions, disks, seed): cut.write(folder); cut.marks

Theory
------
A file's content is on disk as far as a sync of that file has ended, and a name as far as a sync of its folder has. What
is done after that may be on disk or not, in any order, and a write in parts. Four disks differ in what they make of it:

* `Disk.STRICT` keeps nothing that was not synced: all that POSIX promises.
* `Disk.JOURNAL` keeps names as ext4 and XFS do: in their order, and with any sync all that came before; contents that
  were not synced are lost, so that a file renamed into its place without a sync is empty.
* `Disk.RANDOM` keeps any of what was not synced, and parts of it: names and writes in any choice, sectors of a write.
* `Disk.ALL` keeps everything, as after kill -9.

Rules
-----
1. A rename is kept whole or not at all: file systems promise that.
2. What a sync that failed was to write is lost, also for later syncs: Linux takes it for written. Only what is written
   once more is on disk then.
3. Cuts that leave the same files are one cut, the last of them: it has the most marks to honour.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from hashlib import sha256
from pathlib import Path, PurePosixPath

from tests.support.recorded_disk import Record, RecordedDisk, inode_of

_SECTORS = (512, 4096)


class Disk(Enum):
    """What a disk makes of a power failure."""

    STRICT = auto()
    JOURNAL = auto()
    RANDOM = auto()
    ALL = auto()


@dataclass(slots=True)
class _File:
    mode: int
    durable: bytearray
    pending: list[tuple[int, int | None, bytes]] = field(default_factory=list)
    """When, where (None: a size is set) and what."""

    def sync(self, began: int) -> None:
        while self.pending and self.pending[0][0] < began:
            _, place, data = self.pending.pop(0)
            _apply(self.durable, place, data)


@dataclass(slots=True)
class _Folder:
    mode: int
    names: dict[str, _File | _Folder] = field(default_factory=dict)
    """What a process sees."""
    durable: dict[str, _File | _Folder] = field(default_factory=dict)
    pending: list[_Naming] = field(default_factory=list)

    def change(self, naming: _Naming) -> None:
        _rename(self.names, naming.changes)
        self.pending.append(naming)

    def sync(self, began: int) -> None:
        while self.pending and self.pending[0].when < began:
            _rename(self.durable, self.pending.pop(0).changes)


@dataclass(slots=True)
class _Naming:
    when: int
    changes: list[tuple[str, _File | _Folder | None]]
    twin: _Naming | None = None
    """The other half of a rename from one folder into another."""


Tree = dict[str, tuple[int, bytes | None]]
"""Path to mode and content, None for a folder."""


@dataclass(frozen=True, slots=True)
class PowerCut:
    """One power failure: *position* calls were made before it."""

    position: int
    disk: Disk
    tree: Tree
    marks: tuple[str, ...]
    """What somebody knew by then."""

    def __str__(self) -> str:
        return f"power failure after {self.position} calls, {self.disk.name}, last known: {self.marks[-1:]}"

    def write(self, folder: Path) -> None:
        """Make *folder* what the disk holds, in place of whatever is there."""
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(mode=0o700, parents=True)
        for name, (mode, content) in self.tree.items():
            path = folder / name
            if content is None:
                path.mkdir()
            else:
                path.write_bytes(content)
            path.chmod(mode)


class PowerCuts:
    """The folder of *disk*, which is completely on the disk when this is created."""

    def __init__(self, disk: RecordedDisk) -> None:
        self._disk = disk
        self._begin: Tree = {}
        self._inodes: dict[str, int] = {"": inode_of(disk.folder)}
        for each in sorted(disk.folder.rglob("*")):
            name = str(each.relative_to(disk.folder))
            if (each.is_file() or each.is_dir()) and not name.endswith("-shm"):
                self._begin[name] = (each.stat().st_mode & 0o7777, each.read_bytes() if each.is_file() else None)
                self._inodes[name] = inode_of(each)

    def at(self, positions: Iterable[int], disks: Sequence[Disk], seed: int) -> Iterator[PowerCut]:
        """Yield the power failures after *positions*, numbers of calls, on each of *disks*: each outcome once."""
        return self._at(dict.fromkeys(positions, disks), seed)

    def few(self, more: int, seed: int) -> Iterator[PowerCut]:
        """Yield a power failure after each mark on the strictest disk, and *more* elsewhere on the others in turn."""
        marked = self.marks_only()
        elsewhere = sorted(set(self.interesting(more, seed)) - set(marked))
        chosen = sorted(random.Random(seed).sample(elsewhere, min(more, len(elsewhere))))
        disks = (Disk.JOURNAL, Disk.RANDOM)
        other = {position: (disks[turn % len(disks)],) for turn, position in enumerate(chosen)}
        return self._at(dict.fromkeys(marked, (Disk.STRICT,)) | other, seed)

    def _at(self, wanted: Mapping[int, Sequence[Disk]], seed: int) -> Iterator[PowerCut]:
        records = self._disk.records()
        found: dict[bytes, PowerCut] = {}
        replay = _Replay(self._disk.folder, self._begin, self._inodes)
        marks: list[str] = []
        for position in range(len(records) + 1):
            for disk in wanted.get(position, ()):
                tree = replay.left(disk, random.Random(f"{seed} {position} {disk}"))
                found[sha256(repr(tree).encode()).digest()] = PowerCut(position, disk, tree, tuple(marks))
            if position < len(records):
                if records[position].kind == "M":
                    marks.append(records[position].first.decode())
                replay.do(position, records[position])
        yield from found.values()

    def interesting(self, few: int, seed: int) -> list[int]:
        """Return the position after each mark, around each change of a name, *few* random ones, and the end."""
        records = self._disk.records()
        chosen = {len(records)}
        for position, record in enumerate(records):
            if record.kind == "M":
                chosen.add(position + 1)
            elif record.kind in "CDRLU":
                chosen |= {position, position + 1}
        chosen |= set(random.Random(seed).sample(range(len(records)), min(few, len(records))))
        return sorted(chosen)

    def marks_only(self) -> list[int]:
        """Return the position after each mark."""
        return [number + 1 for number, record in enumerate(self._disk.records()) if record.kind == "M"]


class _Replay:
    def __init__(self, folder: Path, begin: Tree, inodes: dict[str, int]) -> None:
        self._place = PurePosixPath(folder)
        self._root = _Folder(0o700)
        self._nodes: dict[int, _File | _Folder] = {inodes[""]: self._root}
        self._begun: dict[tuple[int, int], int] = {}
        self._metadata = 0
        """All names changed before this call are on a disk with a journal."""
        for name, (mode, content) in begin.items():
            node = _Folder(mode) if content is None else _File(mode, bytearray(content))
            above, own = self._find(self._place / name)
            above.names[own] = above.durable[own] = self._nodes[inodes[name]] = node

    def do(self, when: int, record: Record) -> None:
        """Take note of one call."""
        match record.kind:
            case "C" | "D":
                node = _Folder(record.one) if record.kind == "D" else _File(record.one, bytearray())
                self._nodes[record.inode] = node
                above, name = self._find(record.first)
                above.change(_Naming(when, [(name, node)]))
            case "W" | "T":
                file = self._nodes.get(record.inode)
                if file is None:
                    return  # Created by the test, as a process's log is.
                assert isinstance(file, _File)
                written = (record.one, record.first) if record.kind == "W" else (None, record.one.to_bytes(8))
                file.pending.append((when, *written))
            case "S":
                self._begun[record.one, record.two] = when
            case "E":
                began = self._begun.pop((record.one, record.two))
                self._metadata = max(self._metadata, began)
                self._nodes[record.inode].sync(began)
            case "X":
                lost = self._nodes[record.inode]
                assert isinstance(lost, _File)
                lost.pending.clear()
            case "R":
                self._rename(when, record)
            case "L":
                (above, old), (below, new) = self._find(record.first), self._find(record.second)
                below.change(_Naming(when, [(new, above.names[old])]))
            case "U":
                above, name = self._find(record.first)
                above.change(_Naming(when, [(name, None)]))

    def _rename(self, when: int, record: Record) -> None:
        (above, old), (below, new) = self._find(record.first), self._find(record.second)
        node = above.names[old]
        if above is below:
            above.change(_Naming(when, [(old, None), (new, node)]))
            return
        gone, come = _Naming(when, [(old, None)]), _Naming(when, [(new, node)])
        gone.twin, come.twin = come, gone
        above.change(gone)
        below.change(come)

    def _find(self, path: bytes | PurePosixPath) -> tuple[_Folder, str]:
        whole = path if isinstance(path, PurePosixPath) else PurePosixPath(path.decode())
        *folders, name = whole.relative_to(self._place).parts
        found = self._root
        for each in folders:
            below = found.names[each]
            assert isinstance(below, _Folder)
            found = below
        return found, name

    def left(self, disk: Disk, chance: random.Random) -> Tree:
        """Return what *disk* holds if the power fails now."""
        tree: Tree = {}
        _collect(self._root, "", tree, _kept_names(disk, self._metadata, chance), _kept_data(disk, chance))
        return tree


def _collect(
    folder: _Folder,
    path: str,
    tree: Tree,
    keeps: Callable[[_Naming], bool],
    content: Callable[[_File], bytes],
) -> None:
    names = dict(folder.durable)
    for naming in folder.pending:
        if keeps(naming):
            _rename(names, naming.changes)
    for name, node in sorted(names.items()):
        own = f"{path}{name}"
        if isinstance(node, _File):
            tree[own] = (node.mode, content(node))
        else:
            tree[own] = (node.mode, None)
            _collect(node, f"{own}/", tree, keeps, content)


def _kept_names(disk: Disk, metadata: int, chance: random.Random) -> Callable[[_Naming], bool]:
    drawn: dict[int, bool] = {}

    def any_of_them(naming: _Naming) -> bool:
        twin = naming.twin
        if twin is not None and id(twin) in drawn:
            return drawn[id(twin)]
        return drawn.setdefault(id(naming), chance.random() < 0.5)

    match disk:
        case Disk.STRICT:
            return lambda _naming: False
        case Disk.JOURNAL:
            return lambda naming: naming.when < metadata
        case Disk.RANDOM:
            return any_of_them
        case Disk.ALL:
            return lambda _naming: True


def _kept_data(disk: Disk, chance: random.Random) -> Callable[[_File], bytes]:
    def some(file: _File) -> bytes:
        content = bytearray(file.durable)
        for _, place, data in file.pending:
            what = chance.choice(("all", "nothing", *_SECTORS))
            if what == "all" or (place is None and what != "nothing"):
                _apply(content, place, data)
            elif isinstance(what, int) and place is not None:
                for begin in range(-(place % what), len(data), what):
                    if chance.random() < 0.5:
                        _apply(content, place + max(begin, 0), data[max(begin, 0) : begin + what])
        return bytes(content)

    def everything(file: _File) -> bytes:
        content = bytearray(file.durable)
        for _, place, data in file.pending:
            _apply(content, place, data)
        return bytes(content)

    match disk:
        case Disk.STRICT | Disk.JOURNAL:
            return lambda file: bytes(file.durable)
        case Disk.RANDOM:
            return some
        case Disk.ALL:
            return everything


def _apply(content: bytearray, place: int | None, data: bytes) -> None:
    if place is None:
        size = int.from_bytes(data)
        del content[size:]
        content.extend(bytes(size - len(content)))
        return
    content.extend(bytes(max(0, place - len(content))))
    content[place : place + len(data)] = data


def _rename(names: dict[str, _File | _Folder], changes: list[tuple[str, _File | _Folder | None]]) -> None:
    for name, node in changes:
        if node is None:
            names.pop(name, None)
        else:
            names[name] = node


@contextlib.contextmanager
def quick_folder(usual: Path) -> Iterator[Path]:
    """A folder for what a cut has left: in memory where there is such a place, since its syncs are of no interest."""
    memory = Path("/dev/shm")  # noqa: S108 - a private folder is made in it
    with tempfile.TemporaryDirectory(prefix="left-", dir=memory if os.access(memory, os.W_OK) else usual) as folder:
        yield Path(folder)
