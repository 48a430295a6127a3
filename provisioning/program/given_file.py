"""A file that an operator names: an empty name is refused, and it is read up to a limit.

Rules
-----
1. An empty name is refused: it would mean the current directory, for instance if a script's variable is unset.
2. An error has the file's name, also that of a read, to which the kernel gives none: a caller reports it.
3. The size is limited, whatever the name refers to: a device, a pipe or a disk image would fill the memory. A file that
   is too large is an `OSError`, with a text for callers that report that a file cannot be read.

Handles: files that are read whole, or line by line. Does not handle: files that OpenSSL opens itself, which keeps only
PEM lines of them; directories.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, AnyStr, Final, Protocol, TypeVar

ReadT = TypeVar("ReadT")

EMPTY: Final = "is empty; name a file or a directory, or leave it out"
SECRET_BYTES: Final = 64 * 1024
"""Limit for a passphrase, a PIN, a token, or the file that names a key's token."""
SETTINGS_BYTES: Final = 16 * 1024 * 1024
PEM_BYTES: Final = 16 * 1024 * 1024
"""Limit for keys and certificates: some ten thousand of these."""
NAMES_BYTES: Final = 64 * 1024 * 1024
"""Limit for names, one a line: a million of the longest."""
LIST_BYTES: Final = 256 * 1024 * 1024
"""Limit for files with an entry per device, or per revoked one: some millions."""
_PIECE: Final = 64 * 1024
_LINE: Final = 1024 * 1024


class Readable(Protocol):
    """A source of bytes."""

    def read(self, size: int, /) -> bytes | None:
        """Return *size* bytes at most, none at the end."""


def named(value: object) -> object:
    """Return *value*, a file name in a setting; raise ValueError if it is empty, or no file can have it."""
    if value == "":
        raise ValueError(EMPTY)
    if isinstance(value, str) and "\0" in value:
        raise ValueError("no file's name has a NUL in it")
    return value


def contents_of(path: Path, most: int) -> bytes:
    """Return the contents of the file *path*; raise `OSError` if it cannot be read, or has more than *most* bytes."""
    with path.open("rb", buffering=0) as file:
        return rest_of(file, most, str(path))


def text_of(path: Path, most: int) -> str:
    """Return the UTF-8 text in *path*; raise `OSError` as `contents_of`, and `UnicodeDecodeError`."""
    return contents_of(path, most).decode()


def unread(path: Path, error: OSError) -> str:
    """Return that *path* cannot be read, why, and what to do about it."""
    told = f"{path} cannot be read: {error.strerror}"
    match error.errno:
        case errno.ENOENT | errno.ENOTDIR:
            return f"{told}; name one that is there" + ("" if path.is_absolute() else f", from {Path.cwd()} on")
        case errno.EACCES | errno.EPERM:
            return f"{told}; let this user read it"
        case errno.EISDIR:
            return f"{told}; name a file"
    return told


def not_text(error: UnicodeDecodeError) -> str:
    """Return where what was read, of which *error* tells, is no text, and what to do about it."""
    line = error.object.count(b"\n", 0, error.start) + 1
    return f"line {line} is not UTF-8; save it in that encoding"


def rest_of(file: Readable, most: int, name: str) -> bytes:
    """Return the rest of *file*, which errors call *name*; raise `OSError` as `contents_of`."""
    pieces: list[bytes] = []
    left = most
    while piece := _named_by(name, lambda: file.read(_PIECE)):
        left -= len(piece)
        if left < 0:
            raise OSError(errno.EFBIG, too_large(most), name)
        pieces.append(piece)
    return b"".join(pieces)


def lines_of(file: IO[AnyStr], name: str) -> Iterator[AnyStr]:
    """Yield the lines of *file*, which errors call *name*; raise `OSError` for one that is too long."""
    while line := _named_by(name, lambda: file.readline(_LINE)):
        if len(line) == _LINE:
            raise OSError(errno.EFBIG, f"it has a line of more than {_LINE >> 20} MiB: name the right file", name)
        yield line


def _named_by(name: str, read: Callable[[], ReadT]) -> ReadT:
    try:
        return read()
    except OSError as error:
        error.filename = error.filename or name
        raise


def too_large(most: int) -> str:
    """Return the error text for a file that has more than *most* bytes."""
    told = f"{most >> 20} MiB" if most >> 20 else f"{most >> 10} KiB"
    return f"it has more than {told}, which is the most that is read: name the right file"
