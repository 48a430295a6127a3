"""Handshakes that take too long end with RST, not with the end of the stream.

That waits behind what does not reach the peer: with a path MTU that is too small, behind the hello itself (decision
0228). The peer would go on waiting for it.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

_DROP: Final = struct.pack("ii", 1, 0)
_DELIVER: Final = struct.pack("ii", 0, 0)


@contextmanager
def reset_if_late(loop: asyncio.AbstractEventLoop, accepted: socket.socket, seconds: float) -> Iterator[None]:
    """Have *accepted* reset when it is closed, if the block, its handshake, fails after *seconds*.

    They are counted by *loop*, from before its own limit of as many: so they are over before it.
    """
    late = loop.call_later(seconds, drop, accepted)
    try:
        yield
        if late.when() <= loop.time():  # It got through in between.
            do_not_drop(accepted)
    finally:
        late.cancel()


def drop(connected: socket.socket) -> None:
    """When the socket is closed, which is next, send RST, and nothing of what is left."""
    _linger(connected, _DROP)


def do_not_drop(connected: socket.socket) -> None:
    """Undo `drop`."""
    _linger(connected, _DELIVER)


def _linger(connected: socket.socket, value: bytes) -> None:
    try:  # noqa: SIM105 - a context manager takes longer than the call
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, value)
    except OSError:  # It has ended.
        pass
