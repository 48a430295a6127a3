"""Names that outlive a power failure: a file that was synced is lost all the same while its folder was not.

Theory
------
A sync of a file makes its content durable. Its name is an entry of a folder, and so is what a rename or a removal
changes: POSIX promises those only when the folder itself was synced. ext4 and XFS write all names with the next sync of
any file; others, and network file systems, need not.

Rules
-----
1. What somebody is told (an exit code, an answer, a spent token) comes after `sync_names` of the folder concerned.
2. A file is synced before it is renamed to where others read it: otherwise it may be there, and empty.
3. A file system that cannot sync folders is no reason to fail: it has its own way, or none.

Does not handle: a disk that says that it has written what it has not.
"""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path
from typing import BinaryIO, Final

_CANNOT: Final = {errno.EINVAL, errno.ENOTSUP, errno.EBADF}
"""What file systems answer that do not sync folders: some network file systems, some of FUSE."""


def sync_names(folder: Path) -> None:
    """Return when all names in *folder* are on disk. Raises `OSError`."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _CANNOT:
            raise
    finally:
        os.close(descriptor)


def sync_content(file: BinaryIO) -> None:
    """Return when what was written to *file* is on disk. Raises `OSError`."""
    file.flush()
    os.fsync(file.fileno())


def create(path: Path, content: bytes) -> None:
    """Create the file *path*, and return when it is on disk. Raises `OSError`, also if it exists.

    It is nobody else's to write, whatever the umask: a request that waits to be signed could be exchanged. Of what
    could not be written whole nothing is left: the next attempt would be refused for it.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            sync_content(file)
        sync_names(path.parent)
    except OSError:
        with contextlib.suppress(OSError):
            path.unlink()
        raise


def make_folder(path: Path, mode: int = 0o700) -> None:
    """Make *path*, with *mode*, and its parents, unless it is there; return when it is on disk. Raises `OSError`."""
    missing = []
    each = path.absolute()
    while not each.exists():
        missing.append(each)
        each = each.parent
    path.mkdir(mode=mode, parents=True, exist_ok=True)
    for made in missing:
        sync_names(made.parent)


def replace_by(draft: Path, path: Path) -> None:
    """Rename *draft*, which is synced, to *path* in the same folder; return when that is on disk. Raises `OSError`."""
    draft.replace(path)
    sync_names(path.parent)
