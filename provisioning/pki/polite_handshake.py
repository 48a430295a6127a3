"""A handshake whose failure is told to the peer: the alert goes out before the connection is closed.

Theory
------
When OpenSSL refuses a peer it leaves an alert to be sent (RFC 8446 §6.2: "unknown CA", "certificate expired"). The TLS
transports of asyncio and uvloop close the connection without sending what is left, so the peer sees a reset and nobody
knows why. `PoliteHandshake` says "more input is needed" in the place of the first failure: the transport then sends
what is left and goes on reading. Whatever comes next, data or the end, meets the failure itself.

Rules
-----
1. A handshake that has failed never completes: the failure is remembered and raised from then on.
2. It does not outlast the transport's own limit for a handshake: a peer that does nothing more is closed as one that
   never began.
"""

from __future__ import annotations

import ssl

_AGAIN = (ssl.SSLWantReadError, ssl.SSLWantWriteError, ssl.SSLSyscallError, ssl.SSLEOFError)
"""Not a refusal of ours: there is no alert to send."""


class PoliteHandshake(ssl.SSLObject):
    """The TLS side of one connection, for `ssl.SSLContext.sslobject_class`."""

    _failure: ssl.SSLError | None = None

    def do_handshake(self) -> None:
        """Go on with the handshake; a failure is raised when it is met again, after the alert has gone out."""
        if self._failure is not None:
            raise self._failure
        try:
            super().do_handshake()
        except _AGAIN:
            raise
        except ssl.SSLError as failure:
            self._failure = failure
            raise ssl.SSLWantReadError(ssl.SSL_ERROR_WANT_READ, "the alert goes out first") from failure
