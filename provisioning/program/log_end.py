"""Whether SQLite's write-ahead log (-wal) still has all that was committed to it: told before it is opened.

Theory
------
SQLite takes a log as far as its checksums go, and says nothing of what is missing behind. After a kill that is right:
the rest was committed to nobody. But in a log that was cut, or damaged, it is not; and if pages from behind that place
have been moved into the file already, those before it are older than the file. Read with it they hide what is there,
revocations too, or damage it. The log's index (-shm), which a kill leaves, has the numbers: SQLite counts a page there
when it is on disk (``synchronous=FULL``), and what it has moved. Whoever opens the database first writes it anew.

Rules
-----
1. Nothing is changed, and nothing said that is not certain: not of a database that somebody has open, nor if the index
   is of another time than the log, as a power failure may leave it.
2. Closing a descriptor of the index takes away the locks that SQLite has on it in the same process. The system names
   one of those that have it open, perhaps another one: so while anybody has, it is kept (`close`).
3. Each page is summed, as SQLite does: 0.1 s for what a log usually has. Only after a kill is there anything to sum. Of
   a long one that is said first: it takes half a minute for a gigabyte.
4. For both stores, the broker's and provisioning's.

The forms are those of SQLite's file format (4.1, 4.2) and of its WAL-mode index (walformat.html, 2).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
import sys
from array import array
from pathlib import Path
from typing import BinaryIO, Final, NamedTuple

import structlog

log = structlog.get_logger(__name__)

_INDEX: Final = struct.Struct("=IIIBBHII8s8s8s")
_VERSION: Final = 3_007_000
_MOVED: Final = 96
_MOVING: Final = 128
"""Where the index says how many pages are in the file, and how many were to be when it was last begun to move them."""
_HEADER: Final = struct.Struct(">IIII8s8s")
_PAGE_HEADER: Final = struct.Struct(">II8s8s")
_LITTLE: Final = 0x377F0682
_BIG: Final = 0x377F0683
_FORM: Final = "hhqqi0q"
_OPEN: Final = struct.pack(_FORM, fcntl.F_WRLCK, os.SEEK_SET, 128, 1, 0)
"""The lock that whoever has the database open shares (SQLite's os_unix.c)."""
_WORD: Final = 0xFFFFFFFF
_AT_ONCE: Final = 1 << 18
_MANY: Final = 20_000
"""Pages that take some two seconds."""

_kept: Final = list[int]()


class Cut(NamedTuple):
    """What a log lacks."""

    there: int
    committed: int
    """Pages that can be read, and that were committed."""
    moved: int
    moving: int
    """Pages that are in the file, or are overtaken by later ones; and those that may be."""

    @property
    def is_older(self) -> bool:
        """Whether what is left is older than the file, which has all that was committed, and is whole without it."""
        return self.moved >= self.committed

    @property
    def is_torn(self) -> bool:
        """Whether the file may have pages of later than what is left, and lack others: only each newest is moved."""
        return self.there < self.moving and not self.is_older


class Counted(NamedTuple):
    """What the index has counted, and the salts of its log, which is begun anew with others."""

    committed: int
    moved: int
    moving: int
    page_size: int
    salts: bytes

    @property
    def least(self) -> int:
        """How many bytes the log has at least."""
        return _HEADER.size + self.committed * (_PAGE_HEADER.size + self.page_size) if self.committed else 0


def counted(index: int) -> Counted | None:
    """Return what is in the *index*, a descriptor; None: it is not valid now. Raises OSError."""
    there = os.pread(index, _MOVING + 4, 0)
    if len(there) < _MOVING + 4 or there[: _INDEX.size] != there[_INDEX.size : 2 * _INDEX.size]:
        return None
    version, _, _, is_made, _, page_size, committed, _, _, salts, check = _INDEX.unpack_from(there)
    if version != _VERSION or not is_made:
        return None
    if struct.pack("=II", *_sum(there[: _INDEX.size - 8], (0, 0), sys.byteorder)) != check:
        return None
    (moved,), (moving,) = (struct.unpack_from("=I", there, at) for at in (_MOVED, _MOVING))
    return Counted(committed, moved, moving, page_size if page_size > 1 else 65_536, salts)


def close(index: int) -> None:
    """Close a descriptor of the index, or keep it, for as long as this process may have the database open (rule 2)."""
    is_open = True
    with contextlib.suppress(OSError):
        is_open = _is_open(index)
    if is_open:
        _kept.append(index)
    else:
        os.close(index)


def cut(path: Path, index: Path) -> Cut | None:
    """Return what is missing in the log *path*, by its *index*; None: nothing, or it is not known."""
    try:
        opened = os.open(index, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        if _is_open(opened) or (before := counted(opened)) is None:
            return None
        found = _compared(path, before)
        if _is_open(opened) or counted(opened) != before:
            return None  # Somebody has opened it meanwhile, and may have begun the log anew.
    except OSError:  # SQLite says what is wrong with it.
        return None
    finally:
        close(opened)
    return found


def _is_open(index: int) -> bool:
    """Whether anybody has the database open, this process or another one."""
    kind, *_ = struct.unpack(_FORM, fcntl.fcntl(index, fcntl.F_OFD_GETLK, _OPEN))
    return bool(kind != fcntl.F_UNLCK)


def _compared(path: Path, index: Counted) -> Cut | None:
    if index.committed > _MANY:
        log.info("the store's log is read, as it was not closed in order", path=str(path), pages=index.committed)
    with path.open("rb", buffering=_AT_ONCE) as pages:
        there = _whole(pages, index)
    if there is None or there >= index.committed or (not there and index.moved >= index.committed):
        return None
    return Cut(there, index.committed, index.moved, max(index.moved, index.moving))


def _whole(pages: BinaryIO, index: Counted) -> int | None:
    """Return how many of the log's *pages* SQLite takes, of those in the *index*; None: it is of another time."""
    header = pages.read(_HEADER.size)
    if len(header) < _HEADER.size:
        return 0
    magic, _, page_size, _, found, check = _HEADER.unpack(header)
    order = {_LITTLE: "little", _BIG: "big"}.get(magic, "")
    sums = _sum(header[:24], (0, 0), order)
    if not order or struct.pack(">II", *sums) != check:
        return 0  # SQLite takes nothing of it.
    if found != index.salts:
        return None
    taken = 0
    for number in range(1, index.committed + 1):
        header, page = pages.read(_PAGE_HEADER.size), pages.read(page_size)
        if len(page) < page_size:
            break
        _, ends, found, check = _PAGE_HEADER.unpack(header)
        sums = _sum(page, _sum(header[:8], sums, order), order)
        if found != index.salts or struct.pack(">II", *sums) != check:
            break
        if ends:  # A transaction, with as many pages in the file.
            taken = number
    return taken


def _sum(content: bytes, sums: tuple[int, int], order: str) -> tuple[int, int]:
    words = array("I", content)
    if order != sys.byteorder:
        words.byteswap()
    first, second = sums
    each = iter(words)
    for one, other in zip(each, each, strict=True):
        first = (first + one + second) & _WORD
        second = (second + other + first) & _WORD
    return first, second
