"""What tells one file from another of the same name: whether it was replaced, and which two belong together."""

from __future__ import annotations

import ctypes
import os
import struct
from pathlib import Path
from typing import Final

MISSING: Final = "-"
"""The identity of a file that is not there."""
_BORN: Final = 0x800
"""STATX_BTIME."""
_HERE: Final = -100
"""AT_FDCWD."""


def inode_and_size(path: Path) -> tuple[int, int]:
    """Return the inode number of *path* and its bytes; zeros: it is not there. Raises OSError."""
    try:
        there = path.stat()
    except FileNotFoundError:
        return 0, 0
    return there.st_ino, there.st_size


def inode(path: Path) -> int:
    """Return the inode number of *path*, no other file's while it is open; 0: it is not there. Raises OSError."""
    return inode_and_size(path)[0]


def size(path: Path) -> int:
    """Return the bytes of *path*, none if it is not there. Raises OSError."""
    return inode_and_size(path)[1]


def identity(path: Path) -> str:
    """Return what tells *path* from each other file here, past ones included: ext4 gives numbers of inodes anew.

    So the time at which it was made belongs to it, where the file system knows that. `MISSING`: it is not there.
    """
    number, stat = inode(path), ctypes.create_string_buffer(256)
    if not number:
        return MISSING
    statx = getattr(ctypes.CDLL(None), "statx", None)  # Older C libraries have none.
    if statx is None or statx(_HERE, os.fsencode(path), 0, _BORN, stat) != 0:
        return str(number)
    (known,) = struct.unpack_from("=I", stat, 0)
    seconds, nanoseconds = struct.unpack_from("=qI", stat, 80) if known & _BORN else (0, 0)
    return f"{number}:{seconds}.{nanoseconds}"
