"""Which events the socket of one TLS connection is watched for, and whether its peer is read.

Theory
------
There are three reasons not to read a connected peer: what it has sent waits for something (held), it sends faster than
it may (resting), or it does not accept what it is sent (choked). Each comes and goes independently; the peer is read
while none applies. epoll does not report bytes that OpenSSL has read ahead, so when reading resumes the transport is
called once to look for them.

Does not handle: reading and writing (`broker.sockets.transport`, a subclass).
"""

from __future__ import annotations

from asyncio import AbstractEventLoop

from broker.sockets.poller import READABLE, Poller
from broker.sockets.transport_state import HANDSHAKE, OPEN
from provisioning.pki.openssl import has_pending


class Readiness:
    """The part of a transport that decides when it is to be called."""

    __slots__ = ("_events", "_fd", "_held", "_inside", "_loop", "_poller", "_resting", "_state", "choked")

    def __init__(self, loop: AbstractEventLoop, poller: Poller, descriptor: int, inside: int) -> None:
        """Watch *descriptor* for nothing yet; *inside* is the address of OpenSSL's session, 0 if unknown."""
        self._loop = loop
        self._poller = poller
        self._fd = descriptor
        self._inside = inside
        self._state = HANDSHAKE
        self._events = 0
        self._held = self._resting = False
        self.choked = False
        """Whether the backlog exceeds its bound: the peer is not read, and QoS 0 messages to it are dropped."""

    def hold(self) -> None:
        """Stop reading from the peer until `release`."""
        if self._state is OPEN:
            self._held = True
            self._pause_reading()

    def release(self) -> None:
        """Resume reading."""
        self._held = False
        self._read_on()

    def rest(self, seconds: float) -> None:
        """Stop reading from the peer for *seconds*: it sends faster than it may."""
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
            if self._inside and has_pending(self._inside):  # Bytes that the kernel does not know of.
                self._poller.again(self._fd)

    def _pause_reading(self) -> None:
        self._watch(self._events & ~READABLE)
        self._poller.enough(self._fd)

    def _watch(self, events: int) -> None:
        if events != self._events:
            self._events = events
            self._poller.change(self._fd, events)
