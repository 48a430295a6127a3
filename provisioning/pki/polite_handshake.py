"""A handshake that reports its failure to the peer: the alert is sent before the connection is closed.

Theory
------
When OpenSSL refuses a peer it queues an alert (RFC 8446 §6.2: "unknown CA", "certificate expired"). The TLS
transports of asyncio and uvloop close the connection without sending it, so the peer sees a reset and no reason.
`PoliteHandshake` reports "more input is needed" instead of the first failure: the transport then sends the alert
and goes on reading. Whatever comes next, data or the end, raises the failure itself.

Rules
-----
1. A handshake that has failed never completes: the failure is remembered and raised from then on.
2. It does not outlast the transport's own handshake time limit: a peer that sends nothing more is closed like one that
   never began.
"""

from __future__ import annotations

import ssl

_AGAIN = (ssl.SSLWantReadError, ssl.SSLWantWriteError, ssl.SSLSyscallError, ssl.SSLEOFError)
"""Not our refusal: there is no alert to send."""


class PoliteHandshake(ssl.SSLObject):
    """The TLS side of one connection, for `ssl.SSLContext.sslobject_class`."""

    _failure: ssl.SSLError | None = None

    def do_handshake(self) -> None:
        """Continue the handshake; a failure is raised on the next call, after the alert was sent."""
        if self._failure is not None:
            raise self._failure
        try:
            super().do_handshake()
        except _AGAIN:
            raise
        except ssl.SSLError as failure:
            self._failure = failure
            raise ssl.SSLWantReadError(ssl.SSL_ERROR_WANT_READ, "the alert goes out first") from failure
