"""Finds where the service of a directory listens, for commands on its machine.

Rules
-----
1. The address written by `provisioning.directory.in_charge` is used without testing its lock: a test would hold the
   lock for a moment, in which a starting service would be refused. If the service was killed, nothing answers there
   anyway. Only a starting service tests it (`served`), if its port is in use.
2. An address conveys no trust: the server there must have a certificate of the directory's CAs.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

_AT_LOCALHOST: Final = frozenset({"127.0.0.1", "::1", "0.0.0.0", "::", "localhost"})
"""Hosts whose service is addressed by the one name that its certificate has by default."""
_LONGEST: Final = 300


def lock_of(directory: Path) -> Path:
    """Return the file that the service locks while it runs, and writes its address to."""
    return directory / "service.lock"


def found(directory: Path) -> str | None:
    """Return the URL of the directory's service; None if none has written it."""
    try:
        url, *_ = _written(directory)
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except (OSError, ValueError):  # ValueError: not written by a service.
        return None
    if parts.scheme != "https" or port is None:
        return None
    return f"https://localhost:{port}" if host in _AT_LOCALHOST else url


def process_of(directory: Path) -> int | None:
    """Return the number of the process to signal to stop the directory's service; None if it is not recorded.

    In a container it is the number inside the container.
    """
    try:
        _, number, _ = _written(directory)
    except (OSError, ValueError):
        return None
    return int(number) if number.isascii() and number.isdecimal() else None


def build_of(directory: Path) -> str | None:
    """Return the build that serves *directory*, or did when it was killed; None if it is not recorded."""
    try:
        *_, build = _written(directory)
    except (OSError, ValueError):
        return None
    return build or None


def served(directory: Path) -> str | None:
    """Return which service of *directory* runs, and how to stop it; None if none does, or it is unknown."""
    try:
        lock = os.open(lock_of(directory), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return told(directory)
    except OSError:
        return None
    finally:
        os.close(lock)
    return None


def told(directory: Path) -> str:
    """Return where the directory's running service can be reached, and how to stop it."""
    where, process = found(directory) or "an address that it has not told", process_of(directory)
    if process is None:
        return f"{directory} is served already, by another process, at {where}: stop that first"
    return (
        f"{directory} is served already, by process {process}, at {where}: stop that first (kill {process}), or have "
        f"it read its settings anew (kill -HUP {process})"
    )


def copied(directory: Path, port: int) -> str | None:
    """Return of which service at *port* the directory is a copy, by its lock, and what to do; None if of none.

    A directory that is copied while it is served takes the lock's text along, and not the lock.
    """
    url, process = found(directory), process_of(directory)
    if url is None or process in {None, os.getpid()} or urlsplit(url).port != port or not _is_ours(process):
        return None
    return (
        f"{directory} seems to be a copy of the directory that process {process} serves there. Serve one of the two at "
        f"a time, as both would issue for one CA and neither know what the other has revoked: stop that first (kill "
        f"{process})"
    )


def _is_ours(process: int) -> bool:
    """Return whether there is such a *process*, and it is a service: its number may be another's meanwhile."""
    try:
        words = Path(f"/proc/{process}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return b"serve" in words and any(b"provisioning" in word for word in words[: words.index(b"serve")])


def _written(directory: Path) -> tuple[str, str, str]:
    """Return address, process and build that a service has written, empty strings for what it has not."""
    with lock_of(directory).open(encoding="utf-8") as file:
        url, number, build, *_ = (*file.read(_LONGEST).split("\n"), "", "")
    return url.strip(), number.strip(), build.strip()
