"""The hidden folder in which an authority is made, beside the directory that it becomes.

An init that is killed leaves it, with the keys of CAs that were never founded. The next one names it, and does not
touch it: what is done with keys is decided by their owner, and those in a token are not here.

Rules
-----
1. While it is used, a file in it is locked, by the kernel: whatever ends the process releases that.
2. Only a folder with that file was a workshop: one of a similar name may hold a copy of the fleet.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shlex
import shutil
import tempfile
from pathlib import Path
from typing import Final

from provisioning.program.durable_names import sync_names

_LOCK: Final = "founding.lock"


class Workshop:
    """That of the future *directory*, whose parent exists; raises OSError if it cannot be made."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.path: Final = Path(tempfile.mkdtemp(prefix=f".{directory.name}-", dir=directory.parent))  # Mode 0700.
        self._lock = os.open(self.path / _LOCK, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with contextlib.suppress(OSError):  # Some network file systems have no locks.
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def become_the_directory(self) -> None:
        """Rename it, complete as it is, in one step that survives a power failure. Raises `OSError`, and it stays."""
        (self.path / _LOCK).unlink()
        sync_names(self.path)
        self.path.rename(self._directory)
        try:
            sync_names(self._directory.parent)
        except OSError:  # It is about to be said that there is none, and its keys in a token are deleted.
            self._directory.rename(self.path)
            raise

    def close(self) -> None:
        """Remove it, unless it has become the directory."""
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock)


def told_of_left(directory: Path) -> list[str]:
    """Return, for each workshop of *directory* that nobody uses any more, what to do with it."""
    try:
        beside = sorted(directory.parent.iterdir())
    except OSError:  # Founding says why.
        return []
    beginning = f".{directory.name}-"
    return [_told_of(each) for each in beside if each.name.startswith(beginning) and _is_left(each)]


def _told_of(left: Path) -> str:
    remedy = f"rm -r {shlex.quote(str(left))}"
    if any(left.glob("*.pkcs11")):
        remedy = f"delete the keys in the token that its .pkcs11 files name, and {remedy}"
    return f"an init that was killed has left {left}, with keys of CAs that were never founded: {remedy}"


def _is_left(folder: Path) -> bool:
    try:
        lock = os.open(folder / _LOCK, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:  # It is none, or another user's.
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return False
    finally:
        os.close(lock)
    return True
