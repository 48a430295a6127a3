"""What the socket of one TLS connection is watched for, and whether its peer is read.

Theory
------
There are three reasons for which a connected peer is not read: what it has sent waits for somebody (held), it sends
faster than it may (resting), or it does not take what it is sent (choked). Each comes and goes by itself; the peer is
read while there is none. Of bytes that OpenSSL has read ahead the kernel does not tell: whoever is read again is looked
at once more for them.

Hot: `_watch`, where something changes.

Does not handle: reading and writing (`broker.sockets.transport`, which is one of these).
"""

from __future__ import annotations

from asyncio import AbstractEventLoop

from broker.sockets.poller import READABLE, Poller
from broker.sockets.transport_state import HANDSHAKE, OPEN
from provisioning.pki.openssl import has_pending


class Readiness:
    """The part of a transport that says when it is to be called."""

    __slots__ = ("_events", "_fd", "_held", "_inside", "_loop", "_poller", "_resting", "_state", "choked")

    def __init__(self, loop: AbstractEventLoop, poller: Poller, descriptor: int, inside: int) -> None:
        """Watch *descriptor* for nothing yet; *inside* is the address of OpenSSL's session, 0 where it is not known."""
        self._loop = loop
        self._poller = poller
        self._fd = descriptor
        self._inside = inside
        self._state = HANDSHAKE
        self._events = 0
        self._held = self._resting = False
        self.choked = False
        """Whether the backlog is over its bound: the peer is not read, and QoS 0 messages to it are dropped."""

    def hold(self) -> None:
        """Read nothing more from the peer until `release`."""
        if self._state is OPEN:
            self._held = True
            self._pause_reading()

    def release(self) -> None:
        """Read again."""
        self._held = False
        self._read_on()

    def rest(self, seconds: float) -> None:
        """Read nothing more from the peer for so long: it sends faster than it may."""
        if self._state is OPEN and not self._resting:
            self._resting = True
            self._pause_reading()
            self._loop.call_later(seconds, self._rested)

    def _rested(self) -> None:
        self._resting = False
        self._read_on()

    def _read_on(self) -> None:
        if self._state is OPEN and not (self.choked or self._held or self._resting):
            self._watch(self._events | READABLE)
            if self._waits_inside():
                self._poller.again(self._fd)

    def _waits_inside(self) -> bool:
        """Whether there are bytes to read that the kernel does not know of."""
        open_to_it = self._state is OPEN and self._events & READABLE != 0
        return open_to_it and self._inside != 0 and has_pending(self._inside) != 0

    def _pause_reading(self) -> None:
        self._watch(self._events & ~READABLE)
        self._poller.enough(self._fd)

    def _watch(self, events: int) -> None:
        if events != self._events:
            self._events = events
            self._poller.change(self._fd, events)
