"""The temporary directory of a command: gone at its end, and after a kill -9 at the start of the next one.

It holds the keys of a CA and of devices, so it is not left to whoever tidies up. Whether its command still runs is said
by a lock on the directory itself, which the kernel drops with the process; tools that clear old files away (tmpfiles.d)
heed it, too.

Rules
-----
1. Only what can be locked is removed: no other running command's, whatever its process number or age.
2. Only directories of this user, by a name that only this module gives: an older version's have no lock.
3. The lock is taken before anything is in it. Who finds an unlocked one removes it: whoever has made it sees that, and
   makes another.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

_PREFIX = "fleet-sim.held-"


@contextmanager
def workplace(kind: str, said: Callable[[str], None]) -> Iterator[Path]:
    """Yield a directory of one's own for a command of this *kind*; *said* is told what a killed one had left."""
    for left in _left_behind():
        said(f"removed what a command that was killed has left: {left}")
    path, lock = _made(kind)
    try:
        yield path
    finally:
        shutil.rmtree(path)
        os.close(lock)


def _made(kind: str) -> tuple[Path, int]:
    while True:
        path = Path(tempfile.gettempdir(), f"{_PREFIX}{kind}-{secrets.token_hex(4)}")
        path.mkdir(mode=0o700)
        try:
            lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:  # Rule 3.
            continue
        if _is_ours(path, lock):
            return path, lock
        os.close(lock)


def _is_ours(path: Path, lock: int) -> bool:
    """Lock what has just been made; return whether nobody has removed it, or is about to."""
    try:
        _lock(lock)
    except BlockingIOError:
        return False
    except OSError:  # A file system that locks no directory: nobody can, and it stays.
        pass
    try:
        return os.path.samestat(path.stat(), os.fstat(lock))
    except FileNotFoundError:
        return False


def _left_behind() -> list[Path]:
    """Remove the directories of this user's commands that were killed; return them."""
    removed = []
    for path in sorted(Path(tempfile.gettempdir()).glob(f"{_PREFIX}*")):
        try:
            lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:  # It is gone, another user's, or no directory.
            continue
        try:
            found = os.fstat(lock)
            if found.st_uid == os.geteuid() and not stat.S_IMODE(found.st_mode) & 0o077:
                _lock(lock)
                shutil.rmtree(path)
                removed.append(path)
        except OSError:  # Somebody works there, or something of it is still ending: next time.
            continue
        finally:
            os.close(lock)
    return removed


def _lock(descriptor: int) -> None:
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
