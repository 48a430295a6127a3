"""An address that drops what it is sent, as a network that leads nowhere does, and names that have such an address.

with unanswered(port) as dead:
    monkeypatch.setattr(socket, "getaddrinfo", named({"localhost": [dead, "127.0.0.1"]}))

A packet filter needs root. The kernel itself drops a SYN for a listener whose queue is full, and answers nothing.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

_ADDRESS = "127.0.0.66"
_FULL = 2
"""Connections that a queue of none takes: the kernel lets one more in, and one is under way."""


@contextlib.contextmanager
def unanswered(port: int) -> Iterator[str]:
    """Yield an address at whose *port* nobody answers."""
    with contextlib.ExitStack() as held:
        listener = held.enter_context(socket.socket())
        listener.bind((_ADDRESS, port))
        listener.listen(0)
        for _ in range(_FULL):
            waiting = held.enter_context(socket.socket())
            waiting.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                waiting.connect((_ADDRESS, port))
        yield _ADDRESS


def named(addresses: Mapping[str, Sequence[str]]) -> Callable[..., list[tuple[Any, ...]]]:
    """Return a `socket.getaddrinfo` for which the names in *addresses* have these, in this order."""
    real = socket.getaddrinfo

    def getaddrinfo(host: Any, *more: Any, **named: Any) -> list[tuple[Any, ...]]:
        name = host.decode() if isinstance(host, bytes) else host
        return [found for each in addresses.get(name, [name]) for found in real(each, *more, **named)]

    return getaddrinfo
