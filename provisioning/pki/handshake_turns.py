"""TLS handshakes by the event loop's transports, in portions and in turn: strangers do not keep the others waiting.

Theory
------
A transport takes 256 KB from its socket at once, as often as there are as many, and has OpenSSL go through all of it.
Records may have one byte each (RFC 8446 §5.1), so a dozen strangers that send hellos, or certificates, in such records
held everybody for twenty seconds (docs/decisions/0333). So between the socket and the transport there is an
`_Arriving`, until the handshake is over: it reads a portion, then nothing until that has been processed, and the rest
stays in the kernel. The portions of all connections are processed one after the other (`Turns`), for some milliseconds
a turn of the event loop. So many honest handshakes at once, too, leave others their turn.

Turns are given to addresses, not to connections: a thousand connections of one host wait for each other. A known
address, at which an operator or a broker was answered before, comes before all the others, which keep a share of the
time (docs/decisions/0338): however many others there are, and of however many addresses, a revocation gets through.

After the handshake the `_Arriving` stays, because of what a connection keeps in memory: whatever was read into a
transport's 256 KB stays there as long as the connection, and one address may have thousands. Through an `_Arriving`
come `AT_ONCE` at most, by way of room that all connections of a door share. And a transport of TLS takes half a
megabyte of answers before it says that the client does not read them; here it says so when `UNSENT` waits.

The broker's devices have the same, on the socket itself (`provisioning.pki.handshake_bounds`).

Rules
-----
1. A portion is processed in its connection's own context: what a handshake begins belongs to that connection.
2. Nothing is read by the application before its `connection_made`: in it a client is judged, and limited.
3. When the handshake is over, nothing of it is between socket and transport, and what comes passes at once.
4. Whoever is cancelled, or fails, leaves no open connection.
5. Neither those who are known nor the others wait for ever, however many of the others come.
"""

from __future__ import annotations

import asyncio
import contextvars
import socket
import ssl
import time
from collections import OrderedDict, deque
from dataclasses import dataclass
from typing import Any, Final, Protocol, cast

PORTION: Final = 2048
"""Bytes: a millisecond if they are records of one byte; and most clients' whole hello, or certificate."""
AT_ONCE: Final = 16 * 1024
"""Bytes, when the handshake is over: a large record, or most requests."""
UNSENT: Final = 16 * 1024
"""Bytes that wait, above TLS or below, before no more is written."""
SECONDS_A_TURN: Final = 0.005
_SECONDS_OF_KNOWN: Final = 0.004
"""Of these. Afterwards one of the others goes on at least."""


@dataclass(frozen=True, slots=True)
class Whose:
    """Where a connection comes from."""

    address: bytes
    """Its counting key."""
    is_known: bool


class Waits(Protocol):
    """Somebody whose turn it will be."""

    def go_on(self) -> float:
        """Do the next step; return the seconds that it takes later in this turn of the event loop."""


class _Ring:
    """Who waits, by address: each address has its turn, and of one address each connection."""

    def __init__(self) -> None:
        self._of: OrderedDict[bytes, deque[Waits]] = OrderedDict()

    def __bool__(self) -> bool:
        return bool(self._of)

    def add(self, address: bytes, waits: Waits) -> None:
        self._of.setdefault(address, deque()).append(waits)

    def take(self) -> Waits:
        address, waiting = self._of.popitem(last=False)
        taken = waiting.popleft()
        if waiting:
            self._of[address] = waiting
        return taken


class Turns:
    """Handshakes of one door that can go on."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop: Final = loop
        self.room: Final = memoryview(bytearray(AT_ONCE))
        """What is read goes through it, whoever has sent it: it is taken out before anything else is read."""
        self.portion: Final = self.room[:PORTION]
        self._known, self._others = _Ring(), _Ring()
        self._called = False

    def __bool__(self) -> bool:
        """Whether anybody waits."""
        return bool(self._known or self._others)

    def add(self, waits: Waits, whose: Whose) -> None:
        """Have *waits* go on when it is its turn."""
        (self._known if whose.is_known else self._others).add(whose.address, waits)
        self._call()

    def _call(self) -> None:
        if not self._called:
            self._called = True
            self.loop.call_soon(self._go_on, context=_NOBODYS)

    def _go_on(self) -> None:
        self._called = False
        now = time.monotonic()
        end, end_of_known = now + SECONDS_A_TURN, now + _SECONDS_OF_KNOWN
        owed = bool(self._others)  # One of them goes on in this turn, and has not yet.
        later = 0.0
        try:
            while self and (now < end or owed):
                is_known = bool(self._known) and not (owed and now >= end_of_known)
                owed = owed and is_known
                later += (self._known if is_known else self._others).take().go_on()
                now = time.monotonic() + later
        finally:  # An error is one connection's.
            if self:
                self._call()


async def shake_hands(
    turns: Turns,
    whose: Whose,
    accepted: socket.socket,
    context: ssl.SSLContext,
    protocol: asyncio.Protocol,
    seconds: float,
    shutdown_seconds: float | None,
) -> None:
    """Shake hands on *accepted*, for *seconds* at most, and then have *protocol* served.

    Raises what the event loop's `start_tls` does.
    """
    loop, arriving = turns.loop, _Arriving(turns, whose)
    raw, _ = await loop.connect_accepted_socket(lambda: arriving, accepted)
    raw.set_write_buffer_limits(high=UNSENT)
    try:
        loop.call_soon(arriving.come_between)  # Before the first steps of TLS, which `start_tls` calls as soon.
        secured = await loop.start_tls(
            raw,
            asyncio.Protocol(),
            context,
            server_side=True,
            ssl_handshake_timeout=seconds,
            ssl_shutdown_timeout=shutdown_seconds,
        )
        if secured is None or raw.is_closing():
            raise ConnectionAbortedError("the connection has ended")  # noqa: TRY301 - it is closed here, like all
        arriving.let_pass()
        secured.set_write_buffer_limits(high=UNSENT)
        secured.resume_reading()  # From the next turn on, unless the protocol stops it again.
        secured.set_protocol(protocol)
        protocol.connection_made(secured)
    except BaseException:
        raw.abort()
        raise


class _Arriving(asyncio.BufferedProtocol):
    """What is between a socket and the TLS of its connection: it lets portions through until the handshake is over."""

    def __init__(self, turns: Turns, whose: Whose) -> None:
        self._turns = turns
        self._whose = whose
        self._context = contextvars.copy_context()
        self._passes = False
        """Whether the handshake is over."""
        self._came: deque[bytes] = deque()
        """One portion; or two, since `start_tls` resumes reading, whatever has come before."""
        self._raw: asyncio.Transport | None = None
        self._tls: Any = None
        """The protocol that `start_tls` has put there."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._raw = cast("asyncio.Transport", transport)

    def come_between(self) -> None:
        """Take the place of TLS at the socket, and pass on to it what comes."""
        if self._raw is None or (tls := cast("Any", self._raw.get_protocol())) in {None, self}:
            return  # It has ended, of which TLS was told, or not begun.
        self._tls = tls
        self._tls._get_app_transport().pause_reading()  # noqa: SLF001 - asyncio's would read at once (rule 2)
        self._raw.set_protocol(self)
        for _ in self._came:
            self._turns.add(self, self._whose)

    def let_pass(self) -> None:
        """Let through whatever comes; the handshake is over."""
        raw = self._raw
        assert raw is not None, "whoever asks has seen that it is open"  # noqa: S101
        while self._came:
            self._pass_on()
        self._passes = True
        raw.resume_reading()

    def get_buffer(self, sizehint: int) -> memoryview:
        del sizehint
        return self._turns.room if self._passes else self._turns.portion

    def buffer_updated(self, nbytes: int) -> None:
        if self._raw is None:
            return
        if self._passes:
            self._give(self._turns.room[:nbytes])
            return
        self._raw.pause_reading()
        self._came.append(bytes(self._turns.portion[:nbytes]))
        if self._tls is not None:
            self._turns.add(self, self._whose)

    def go_on(self) -> float:
        """Process a portion, and have the next one read."""
        if self._raw is not None and not self._raw.is_closing() and self._came:
            self._context.run(self._pass_on)
            self._turns.loop.call_soon(self._read_on)
        return 0.0

    def _read_on(self) -> None:
        """Have the next portion read. If the handshake is over, who reads is for TLS to say.

        Otherwise the end of the stream might be read before what came with the last of the handshake.
        """
        if self._raw is not None and not (self._came or self._passes):
            self._raw.resume_reading()

    def _pass_on(self) -> None:
        self._give(self._came.popleft())

    def _give(self, came: bytes | memoryview) -> None:
        size = len(came)
        self._tls.get_buffer(size)[:size] = came
        self._tls.buffer_updated(size)

    def eof_received(self) -> bool | None:
        return None if self._tls is None else self._tls.eof_received()  # None ends it.

    def connection_lost(self, exc: Exception | None) -> None:
        if self._tls is not None:
            self._tls.connection_lost(exc)
        self._forget()

    def pause_writing(self) -> None:
        if self._tls is not None:
            self._tls.pause_writing()

    def resume_writing(self) -> None:
        if self._tls is not None:
            self._tls.resume_writing()

    def _forget(self) -> None:
        """Hold nothing of the connection: otherwise it would keep itself alive."""
        self._raw = self._tls = None
        self._came.clear()


_NOBODYS: Final = contextvars.Context()
