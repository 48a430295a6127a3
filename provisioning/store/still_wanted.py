"""Ends an attempt to connect that nobody waits for any more: Ctrl-C ends a command whose database is silent.

A database whose machine is gone, or hangs, is waited for as long as ``connect_timeout`` says, in a thread, which no
signal interrupts. Nothing has been asked of it by then, so nothing has to be awaited.

Rules
-----
1. Each thread says by itself who waits for what it does; one that says nothing waits for its own.
2. As long as anybody waits, the attempt goes on: in a service others may have come meanwhile.
3. One that was given up tells nothing of the server: nobody else is refused for it, and the log says nothing.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator


class Unwanted(Exception):
    """Nobody waits for the connection any more. Whoever raises it makes it one of the driver's errors, too."""


class _Asked(threading.local):
    by_somebody: Callable[[], bool] | None = None


_asked = _Asked()


@contextlib.contextmanager
def connecting_while(wanted: Callable[[], bool]) -> Iterator[None]:
    """Let an attempt to connect in the block, by this thread, go on while *wanted* says so."""
    _asked.by_somebody = wanted
    try:
        yield
    finally:
        _asked.by_somebody = None


def is_wanted() -> bool:
    """Whether anybody waits for the connection that this thread opens."""
    wanted = _asked.by_somebody
    return wanted is None or wanted()
