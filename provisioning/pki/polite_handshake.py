"""A TLS connection that reports its failure to the peer, with an alert before it is closed, and that lets others read.

Theory
------
When OpenSSL refuses a peer it queues an alert (RFC 8446 §6.2: "unknown CA", "certificate expired"). The TLS
transports of asyncio and uvloop close the connection without sending it, so the peer sees a reset and no reason.
`PoliteHandshake` reports "more input is needed" instead of the first failure: the transport then sends the alert
and goes on reading. Whatever comes next, data or the end, raises the failure itself. The same goes for a record after
the handshake that OpenSSL does not accept ("bad record MAC", "unexpected message").

The connection must be closed after a fatal alert (same section), and not only when the peer closes it. The transport
does not know of the failure, so whoever accepted the socket is told (`on_refusal`).

The transport also reads record after record for as long as it has any, before anybody else has a turn; it would take
256 KB from the socket at once, and a record of one byte costs as much as a large one. So a dozen peers that send small
records held everybody for ten seconds. With `take_turns` it gets `PORTION` records, then "more input is needed", and
goes on when the others have had their turn. And while its application takes nothing, no more than `WAITING` is read for
it. What a handshake reads, and what is read at once, is bounded by `provisioning.pki.handshake_turns`.

Rules
-----
1. What has failed never goes on: the failure is remembered and raised from then on.
2. It does not outlast the transport's own handshake time limit: a peer that sends nothing more is closed like one that
   never began.
3. It does not keep itself alive: an exception refers to the frames that it passed, and these to the handshake, so what
   is remembered is never raised itself.
4. While records wait for their turn nothing more is read from the socket: at its end the transport would drop them.
"""

from __future__ import annotations

import asyncio
import copy
import ssl
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, Final, Protocol, Self, cast

from provisioning.pki.openssl import address_of, forget_errors
from provisioning.pki.resumption import stand_apart

_AGAIN = (ssl.SSLWantReadError, ssl.SSLWantWriteError, ssl.SSLSyscallError, ssl.SSLEOFError)
"""Not our refusal: there is no alert to send."""
_ALERT_FIRST: Final = (ssl.SSL_ERROR_WANT_READ, "the alert goes out first")
_OTHERS_FIRST: Final = (ssl.SSL_ERROR_WANT_READ, "others have their turn first")
PORTION: Final = 16
"""Records: 256 KB if they are large."""
WAITING: Final = 16 * 1024
"""Bytes; the transports' own bound is 256 KB, for each connection whose request waits."""

_tell: Final[ContextVar[Callable[[ssl.SSLError], object] | None]] = ContextVar("tell", default=None)


def on_refusal(tell: Callable[[ssl.SSLError], object]) -> None:
    """Have the handshakes that begin in this context, for example in this task, call *tell* when they fail.

    It is given the error. The alert has not been sent then: the transport sends it before the event loop does anything
    else.
    """
    _tell.set(tell)


def take_turns(transport: asyncio.BaseTransport) -> None:
    """Have *transport*, whose handshake is complete, read in portions, and no more than is taken.

    One without TLS does so anyway.
    """
    session = transport.get_extra_info("ssl_object")
    if not isinstance(session, PoliteHandshake):
        return
    loop, reading = asyncio.get_running_loop(), cast("asyncio.Transport", transport)

    def read_on() -> None:
        if reading.is_reading() and not reading.is_closing():  # Else whoever resumes it has it read on.
            reading.pause_reading()
            reading.resume_reading()

    def usual() -> None:
        reading.set_read_buffer_limits(high=WAITING)  # type: ignore[attr-defined] # Of the two loops' TLS transports.

    def wait(*, waits: bool) -> None:
        if waits and not reading.is_closing():
            reading.set_read_buffer_limits(high=1)  # type: ignore[attr-defined] # The same.
            loop.call_soon(read_on)
        elif not waits:
            usual()

    usual()
    session.take_turns(wait)


def end_turns(transport: asyncio.BaseTransport) -> None:
    """Have the session of *transport*, whose connection is gone, let go of it: it has the session, and both would stay.

    What TLS has of a connection, 55 KB and more, would otherwise wait for a collection of garbage.
    """
    session = transport.get_extra_info("ssl_object")
    if isinstance(session, PoliteHandshake):
        session.take_turns(None)


class _Wait(Protocol):
    """Hears that records wait for the next turn; or that there are none any more."""

    def __call__(self, *, waits: bool) -> None: ...


class PoliteHandshake(ssl.SSLObject):
    """The TLS side of one connection, for `ssl.SSLContext.sslobject_class`."""

    _failure: ssl.SSLError | None = None
    _told: Callable[[ssl.SSLError], object] | None = None
    _left: int = PORTION
    """Records of this turn."""
    _wait: _Wait | None = None
    _waits: bool = False
    """Whether some wait for their turn."""

    def __new__(cls, *arguments: Any, **options: Any) -> Self:
        """Take note of whom to tell: the handshake may be continued in another context."""
        made = super().__new__(cls, *arguments, **options)
        made._told = _tell.get()
        return made

    def do_handshake(self) -> None:
        """Continue the handshake; a failure is raised on the next call, after the alert was sent."""
        if self._failure is not None:
            raise copy.copy(self._failure)
        try:
            super().do_handshake()
        except _AGAIN:
            raise
        except ssl.SSLError as failure:
            self._note(failure)
        else:
            forget_errors()
            return
        raise ssl.SSLWantReadError(*_ALERT_FIRST)

    def read(self, len: int = 1024, buffer: Any = None) -> Any:  # noqa: A002 - as in `ssl`
        """Return what `ssl.SSLObject.read` does; a failure is raised on the next call, after the alert was sent."""
        if self._failure is not None:
            raise copy.copy(self._failure)
        if self._wait is not None:
            if not self._left:
                self._left = PORTION
                self._waits = True
                self._wait(waits=True)
                raise ssl.SSLWantReadError(*_OTHERS_FIRST)
            self._left -= 1
        try:
            return super().read(len, buffer)
        except (*_AGAIN, ssl.SSLZeroReturnError):
            self._left = PORTION
            if self._waits and self._wait is not None:
                self._waits = False
                self._wait(waits=False)
            raise
        except ssl.SSLError as failure:
            self._note(failure)
        raise ssl.SSLWantReadError(*_ALERT_FIRST)

    def take_turns(self, wait: _Wait | None) -> None:
        """Have no more than `PORTION` records read at once; *wait* is told where there may be more. None: no longer."""
        self._wait = wait

    def _note(self, failure: ssl.SSLError) -> None:
        self._failure = copy.copy(failure)
        if self._told is not None:
            self._told(self._failure)


class FullHandshake(PoliteHandshake):
    """One whose client resumes no TLS session, though its context has some to be resumed: it has to use its key."""

    _begun = False

    def do_handshake(self) -> None:
        """Do as above, apart from all other sessions."""
        if not self._begun:
            self._begun = True
            if address := address_of(self):
                stand_apart(address)
        super().do_handshake()
