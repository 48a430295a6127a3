"""A non-blocking stream for logs: what cannot be written is dropped and counted.

Theory
------
Both services log from their event loops. Writing to a file fails at once or succeeds. A pipe or a socket whose reader
has stopped, such as a hanging collector, reports nothing: it takes 64 KiB, and then blocks the writer, and with it
every connection, every revocation and the stop::

    service ─► pipe, full ─► a reader that does not read

So those are written without blocking, through our own open file description of the pipe: others that share the pipe, a
shell or other workers, are not affected.

Rules
-----
1. A slow reader is waited for, `_PATIENCE_SECONDS` at most, and not again until it has read.
2. Lines are dropped whole: the rest of one that has begun is written first when there is room. Then the number of
   dropped lines is logged.

Does not handle: a terminal that was halted (Ctrl-S), which is intended; a disk that hangs.
"""

from __future__ import annotations

import json
import os
import select
import socket
import stat
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, TextIO

from provisioning.program.moments import rfc3339_exactly

_PATIENCE_SECONDS: Final = 0.5


class LossyStream:
    """A text stream for logs; counts lines that it cannot write. Used from any thread."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._lock = threading.Lock()
        self._target = _target_of(stream)
        self._stopped = False
        """Whether waiting for the reader was in vain, and it has read nothing since."""
        self._rest = b""
        """The unwritten rest of a line that has begun."""
        self._untold = 0
        self.lost = 0

    def write(self, text: str) -> int:
        """Write the line *text* if possible."""
        try:
            if self._target is None:
                return self._stream.write(text)
            with self._lock:
                self._put_line(self._target, text.encode("utf-8", "backslashreplace"))
        except (OSError, ValueError):  # ValueError: it was closed.
            self.lost += 1
        return len(text)

    def flush(self) -> None:
        """Write what is buffered, if possible."""
        if self._target is not None:
            return
        try:
            self._stream.flush()
        except (OSError, ValueError):
            self.lost += 1

    def close(self) -> None:
        """Close our own descriptor; the stream stays open."""
        if self._target is not None:
            self._target.close()

    def _put_line(self, target: _Target, line: bytes) -> None:
        self._rest = self._put(target, self._rest)
        lines = _told(self._untold) + line if self._untold else line
        left = lines if self._rest else self._put(target, lines)
        if left == lines:
            self.lost += 1
            self._untold += 1
        else:
            self._rest, self._untold = left, 0

    def _put(self, target: _Target, data: bytes) -> bytes:
        """Write as much as there is room and a reader for; return the rest of *data*."""
        deadline = time.monotonic() + (0.0 if self._stopped else _PATIENCE_SECONDS)
        while data:
            try:
                written = target.write(data)
            except BlockingIOError:
                seconds = deadline - time.monotonic()
                if seconds <= 0 or not _has_room(target.descriptor, seconds):
                    self._stopped = True
                    return data
                continue
            except OSError:  # No reader; a named pipe may get one again.
                return data
            self._stopped = False
            data = data[written:]
        return data


@dataclass(frozen=True, slots=True)
class _Target:
    """A pipe or a socket."""

    descriptor: int
    write: Callable[[bytes], int]
    """Writes without blocking, and returns how much; raises BlockingIOError if that is nothing."""
    close: Callable[[], None]


def _target_of(stream: TextIO) -> _Target | None:
    """Return what *stream* writes to; None if writing to it never waits for a reader."""
    try:
        descriptor = stream.fileno()
        kind = os.fstat(descriptor).st_mode
    except (OSError, ValueError, AttributeError):
        return None
    if stat.S_ISSOCK(kind):  # From journald.
        return _socket(socket.socket(fileno=os.dup(descriptor)))
    if not stat.S_ISFIFO(kind):
        return None
    try:
        return _own_pipe(_opened(descriptor))
    except OSError:  # Another user's pipe, or no /proc.
        return _borrowed_pipe(descriptor)


def _opened(descriptor: int) -> int:
    """Return a new open file description of the same pipe."""
    return os.open(f"/proc/self/fd/{descriptor}", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)


def _socket(there: socket.socket) -> _Target:
    how = socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL
    return _Target(there.fileno(), lambda data: there.send(data, how), there.close)


def _own_pipe(own: int) -> _Target:
    return _Target(own, lambda data: os.write(own, data), lambda: os.close(own))


def _borrowed_pipe(descriptor: int) -> _Target:
    def write(data: bytes) -> int:
        if not _has_room(descriptor, 0.0):
            raise BlockingIOError
        return os.write(descriptor, data[: select.PIPE_BUF])  # So much is written atomically.

    return _Target(descriptor, write, lambda: None)


def _has_room(descriptor: int, seconds: float) -> bool:
    """Wait until the reader has read, *seconds* at most; return whether there is room, or no reader."""
    watch = select.poll()
    watch.register(descriptor, select.POLLOUT)
    return bool(watch.poll(1000 * seconds))


def _told(lost: int) -> bytes:
    at = rfc3339_exactly(datetime.now(UTC))
    line = {"event": "log lines lost", "lines": lost, "detail": "the reader of the log did not", "level": "warning"}
    return (json.dumps(line | {"timestamp": at}) + "\n").encode()
