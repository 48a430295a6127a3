"""Records which process serves a directory, and where it listens: so there is only one, and commands find it.

Theory
------
The service holds ``service.lock`` in its directory while it runs, and writes its address, the number of the process to
signal (with workers, that of the supervisor) and its build into it. It is a kernel lock: whatever ends the process
releases it. SQLite allows one service: another process would learn of its revocations late
(`provisioning.store.announcements`), so a second one is refused; one of another directory by
`provisioning.store.sole_service`. On PostgreSQL several may share a directory, and commands find the first one.

Rules
-----
1. A lock that cannot be written or held, say on a full disk, does not keep the service from starting: the service
   warns, and commands look for it at the address in the directory's settings.
2. A lock that this user may not open is another user's, whose service may be running: that is unknown, and on SQLite
   refused. Files that root makes belong to the directory's owner, so that root's service does not block the owner's.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

import structlog

from provisioning.directory.whereabouts import lock_of, told
from provisioning.errors import ConfigurationError
from provisioning.pki.own_directory import user_argument, user_name
from provisioning.program.build import build_identity

log = structlog.get_logger(__name__)


@contextlib.contextmanager
def in_charge(directory: Path, https_url: str, process: int, *, alone: bool) -> Iterator[None]:
    """Serve *directory* at *https_url* while the block runs; raise `ConfigurationError` if *alone* and another does.

    *process* is the one to signal.
    """
    path = lock_of(directory)
    lock = None
    try:
        lock = _lock(path)
    except BlockingIOError:
        if alone:
            raise ConfigurationError(f"{told(directory)}; on SQLite one service runs at a time") from None
    except OSError as error:
        if alone and isinstance(error, PermissionError):
            raise ConfigurationError(_not_ours(path)) from error
        log.warning("lock file not written", code="LOCK_NOT_WRITTEN", file=str(path), detail=error.strerror)
    if lock is None:
        yield
        return
    try:
        _write(lock, path, f"{https_url}\n{process}\n{build_identity()}\n")
        try:
            yield
        finally:
            _write(lock, path, "")
    finally:
        os.close(lock)


def _lock(path: Path) -> int:
    """Return the file at *path*, locked; raise BlockingIOError if another process holds it, OSError if it cannot be."""
    lock = _open(path)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # Some network file systems have no locks.
        os.close(lock)
        raise
    return lock


def _open(path: Path) -> int:
    how = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW  # Root must not follow the directory owner's symbolic link.
    try:
        made = os.open(path, how | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return os.open(path, how)
    if os.geteuid() == 0:
        owner = path.parent.stat()
        with contextlib.suppress(OSError):  # On a network file system that maps root to another user.
            os.fchown(made, owner.st_uid, owner.st_gid)
    return made


def _not_ours(path: Path) -> str:
    why = "so it is unknown whether another service runs there, and SQLite allows only one at a time"
    try:
        owner = user_name(path.stat().st_uid)
    except OSError:
        owner = user_name(path.parent.stat().st_uid)
        return f"{path.parent} belongs to {owner} and {path.name} cannot be made there, {why}: run it as {owner}"
    us = os.geteuid()
    remedy = f"stop {owner}'s, then chown {user_argument(us)} {path}"
    return f"{path} belongs to {owner} and {user_name(us)} may not open it, {why}: {remedy}"


def _write(lock: int, path: Path, text: str) -> None:
    try:
        os.ftruncate(lock, 0)
        os.pwrite(lock, text.encode(), 0)
    except OSError as error:
        log.warning(
            "file with the service's address not written",
            code="ADDRESS_NOT_WRITTEN",
            file=str(path),
            detail=error.strerror,
        )
