"""The Unix socket of the admin API: private, and one broker's at a time.

Rules
-----
1. Mode 0600 from its first moment: the mode is set before the name exists, and nobody can connect before it listens.
2. The socket of a dead broker is taken over; that of a living one is not.
3. A path longer than a socket address can hold (107 bytes) is reached through its directory, by `address_of`.
"""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import struct
from collections.abc import Iterator
from pathlib import Path

OFF = "off"
SOCKET_NAME = "admin.sock"
_LONGEST = 107
_MODE = 0o600


class AdminSocketError(Exception):
    """The socket cannot be created or reached; the text names it and the remedy."""


def socket_path(setting: str | None, state_dir: Path) -> Path | None:
    """Return the socket's path for the setting ``admin_socket``; None: no socket."""
    if setting == OFF:
        return None
    return state_dir / SOCKET_NAME if setting is None else Path(setting)


@contextlib.contextmanager
def address_of(path: Path) -> Iterator[str]:
    """Yield a socket address for *path*, however long it is; valid inside the ``with`` block."""
    if len(os.fsencode(path)) <= _LONGEST:
        yield str(path)
        return
    descriptor = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{descriptor}/{path.name}"
    finally:
        os.close(descriptor)


def open_socket(path: Path) -> socket.socket:
    """Return a listening socket at *path*. Raises `AdminSocketError`."""
    remedy = "set admin_socket to a place that can be written, or to off"
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _take_over(path)
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            os.fchmod(listening.fileno(), _MODE)
            with address_of(path) as address:
                listening.bind(address)
            listening.setblocking(False)
            listening.listen()
        except OSError:
            listening.close()
            raise
    except OSError as error:
        raise AdminSocketError(f"admin_socket {path} cannot be opened: {error.strerror}; {remedy}") from error
    return listening


def remove(path: Path) -> None:
    """Remove the name *path*."""
    with contextlib.suppress(OSError):
        path.unlink()


def peer_of(connected: socket.socket) -> str:
    """Return who is at the other end of *connected*, for the log: the user ID, as reported by the kernel."""
    credentials = connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    _, user, _ = struct.unpack("3i", credentials)
    return f"uid {user}"


def _take_over(path: Path) -> None:
    """Remove what a dead broker left at *path*; raise `AdminSocketError` for anything else."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        if stat.S_ISDIR(mode):
            raise AdminSocketError(f"admin_socket {path} is a directory: set a path in it")
        raise AdminSocketError(f"admin_socket {path} is a file and no socket: move it away, or set another path")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe, address_of(path) as address:
        probe.setblocking(False)
        try:
            probe.connect(address)
        except ConnectionRefusedError:
            path.unlink()
            return
        except BlockingIOError:  # It is alive: its backlog is full.
            pass
    raise AdminSocketError(f"admin_socket {path} is in use by another broker: give each its own state_dir")
