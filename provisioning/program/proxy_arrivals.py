"""Connections of proxies whose PROXY header is awaited: read to its last byte, and not one byte further.

Theory
------
What follows the header is the client's TLS, often in the same segment, and it has to stay in the kernel for OpenSSL. So
what is there is looked at (``MSG_PEEK``), and then taken as far as it belongs to the header
(`provisioning.program.proxy_header`): all of it while the header is incomplete, so that the event loop is not woken
again for what was seen already.

A proxy opens a connection when a client has, and sends the header at once: it is normally there when the connection
is accepted. One that waits costs a descriptor and nothing else.

Rules
-----
1. Bounded: at most as many wait as the caller allows, and none longer than it allows. When there are too many, the
   oldest ends. The proxy's own address is not limited: all clients come from there.
2. A header that is missing, invalid or late ends the connection, and is logged once a minute: the proxy is configured
   wrongly, or somebody else has an address of its network.
3. A health check is no attack: a connection that ends before its first byte, or after a header without a client or
   with the proxy itself as client (version 1 of HAProxy), is closed without a word. One that goes on after such a
   header (a check by TLS) has the proxy's own address.
4. A loopback address in a header is the proxy's machine, not this one, unless the proxy is on this one: such a
   connection has the proxy's own address.

Does not handle: who is a proxy (`provisioning.program.proxy_networks`), or what becomes of the connection.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Callable

import structlog

from provisioning.program.once_a_minute import OnceAMinute
from provisioning.program.proxy_header import LONGEST, Address, InvalidHeader, read_header, unmapped

log = structlog.get_logger(__name__)


class _Over(Exception):
    """The connection has ended, and nobody needs to know."""


class _Arrival:
    """One connection whose header is awaited, or after a header without a client its first byte."""

    __slots__ = ("accepted", "begun", "has_header", "peer", "until")

    def __init__(self, accepted: socket.socket, peer: Address, until: float) -> None:
        self.accepted = accepted
        self.peer = peer
        self.until = until
        self.begun = b""
        """What has been taken of the header."""
        self.has_header = False


class ProxyArrivals:
    """All such connections of one listener."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        arrived: Callable[[socket.socket, Address], None],
        refused: Callable[[str], None] = lambda _host: None,
    ) -> None:
        """Call *arrived* with each connection whose header has come later, and its client's address.

        *refused* is called with the address of each proxy whose connection was refused.
        """
        self._loop = loop
        self._arrived = arrived
        self._refused = refused
        self._waiting: dict[int, _Arrival] = {}
        """By descriptor, the oldest first."""
        self._timer: asyncio.TimerHandle | None = None
        self._refusals = OnceAMinute()

    def __len__(self) -> int:
        """Return how many wait."""
        return len(self._waiting)

    def take(self, accepted: socket.socket, peer: Address, seconds: float, most: int) -> Address | None:
        """Read the header of the non-blocking connection *accepted* of the proxy *peer*; return its client's address.

        None: the connection is ours now. Either its header is not complete, and *arrived* is called when it is within
        *seconds*; or it has ended. At most *most* wait.
        """
        arrival = _Arrival(accepted, peer, self._loop.time() + seconds)
        client = self._looked_at(arrival)
        if client is None and accepted.fileno() >= 0:
            while len(self._waiting) >= most:
                oldest = next(iter(self._waiting.values()))
                if oldest.has_header:
                    self._end(oldest)
                else:
                    self._refuse(oldest, f"more than {most} connections wait for their PROXY headers, this one longest")
            self._waiting[accepted.fileno()] = arrival
            self._loop.add_reader(accepted.fileno(), self._ready, arrival)
            if self._timer is None:
                self._timer = self._loop.call_later(seconds, self._look)
        return client

    def close(self) -> None:
        """Close them all."""
        for arrival in list(self._waiting.values()):
            self._end(arrival)

    def _ready(self, arrival: _Arrival) -> None:
        client = self._looked_at(arrival)
        if client is not None:
            self._forget(arrival)
            self._arrived(arrival.accepted, client)

    def _looked_at(self, arrival: _Arrival) -> Address | None:
        """Return the client's address if it is known now; None: it is not, or the connection was closed."""
        try:
            return _read(arrival)
        except _Over:
            self._end(arrival)
        except InvalidHeader as error:
            self._refuse(arrival, str(error))
        return None

    def _refuse(self, arrival: _Arrival, why: str) -> None:
        host = arrival.peer[0]
        self._end(arrival)
        if times := self._refusals.happened(self._loop.time()):
            log.warning(
                "connection without a valid PROXY header refused",
                code="BAD_PROXY_HEADER",
                address=host,
                detail=why,
                connections=times,
            )
        self._refused(host)

    def _end(self, arrival: _Arrival) -> None:
        self._forget(arrival)
        arrival.accepted.close()

    def _forget(self, arrival: _Arrival) -> None:
        if self._waiting.pop(arrival.accepted.fileno(), None) is not None:
            self._loop.remove_reader(arrival.accepted.fileno())
        if not self._waiting and self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        """End those whose time is over."""
        self._timer = None
        now = self._loop.time()
        for arrival in list(self._waiting.values()):
            if arrival.until > now:
                self._timer = self._loop.call_later(arrival.until - now, self._look)
                return
            if arrival.has_header:
                self._end(arrival)
            else:
                self._refuse(arrival, "the PROXY header did not come in time")


def _read(arrival: _Arrival) -> Address | None:
    """Take what is there of the header; return the client's address, None if it is not known yet.

    Raises `InvalidHeader`, and `_Over` at an end that is no attack.
    """
    accepted = arrival.accepted
    while True:
        try:
            seen = accepted.recv(LONGEST, socket.MSG_PEEK)
        except BlockingIOError:
            return None
        except OSError:  # Reset: so end health checks of HAProxy.
            raise _Over from None
        if not seen:
            if arrival.begun and not arrival.has_header:
                raise InvalidHeader("the connection ended within its PROXY header")
            raise _Over
        if arrival.has_header:
            return arrival.peer
        header = read_header(arrival.begun + seen)
        arrival.begun += accepted.recv(len(seen) if header is None else header.size - len(arrival.begun))
        if header is not None and len(arrival.begun) == header.size:
            if header.client is not None and not _is_of_the_proxy(header.client[0], arrival.peer[0]):
                return header.client
            arrival.has_header = True


def _is_of_the_proxy(client: str, proxy: str) -> bool:
    """Whether *client* is the *proxy*, or on its machine: loopback is not this one, unless the proxy is here too."""
    its = unmapped(ipaddress.ip_address(proxy))
    theirs = ipaddress.ip_address(client)
    return theirs == its or (theirs.is_loopback and not its.is_loopback)
