"""TLS sessions that a server keeps, so that its clients come back with a ticket that only names theirs.

Theory
------
Left to itself, OpenSSL hands out tickets that are encrypted copies of the session, the client's certificate included,
two for each handshake. A server that remembers its sessions hands out one of 32 bytes, when it has something to write
anyway (docs/decisions/0097).

Rules
-----
1. Where sessions cannot be kept (`CAN_REMEMBER`), nothing here has an effect, and OpenSSL does as it does.
2. A ticket is used once: who came with it is given another one.
3. Who is let into TLS and no further is given none, and leaves nothing: it would be 6 KB for each time that it comes,
   and the sessions of those who are let in would have to go for it. What it came with it keeps.
4. A session is resumed for a day after its client has shown its certificate's key (`provisioning.pki.key_shown`), in
   TLS 1.3, and exchanges keys for less than the first time (`provisioning.pki.resumed_exchange`).
"""

from __future__ import annotations

import ssl
from typing import Final

from provisioning.pki import key_shown
from provisioning.pki.openssl import AVAILABLE, address_of_context, library
from provisioning.pki.resumed_exchange import exchange_less

CAN_REMEMBER: Final = AVAILABLE and ssl.OPENSSL_VERSION_INFO >= (3, 3)
"""Whether sessions can be kept in memory: older versions may let them pile up beyond any bound (CVE-2024-2511)."""
_SET_SESSION_CACHE_SIZE: Final = 42
_BOTH_SAID_GOODBYE: Final = 3


def remember_sessions(context: ssl.SSLContext, most: int, *, hybrid: bool = False) -> None:
    """Keep the TLS sessions of a server's *context* in memory, *most* of them; return without effect if that cannot be.

    A client returns with a ticket of 32 bytes that names its session, instead of one that is an encrypted copy of it.
    Nothing is handed out by itself: `offer_ticket`. The least recent go first, and all after two hours. A connection
    that ends without close_notify reads as ended: as an error, it would cost the client its session. *hybrid* has a
    resumed session exchange keys as at first, with ML-KEM.
    """
    if CAN_REMEMBER:
        context.options |= ssl.OP_NO_TICKET | ssl.OP_IGNORE_UNEXPECTED_EOF
        context.num_tickets = 0
        library.SSL_CTX_ctrl(address_of_context(context), _SET_SESSION_CACHE_SIZE, most, None)
        exchange_less(context, hybrid=hybrid)


def offer_ticket(address: int, *, resumed: bool) -> None:
    """Let what is written next to the session at *address* be preceded by a ticket; the one it came with is used up.

    Not before the handshake is complete. TLS 1.3 only: in TLS 1.2 the handshake itself has named the session.
    """
    came_with = 0
    if resumed:
        came_with = library.SSL_get_session(address)
    else:
        key_shown.note(library.SSL_get_session(address))
    if library.SSL_new_session_ticket(address) and came_with:
        library.SSL_CTX_remove_session(library.SSL_get_SSL_CTX(address), came_with)


def forget_sessions(context: ssl.SSLContext) -> None:
    """Forget what `remember_sessions` keeps: nobody can come back to *context*. Its connections live on."""
    if CAN_REMEMBER:
        library.SSL_CTX_flush_sessions(address_of_context(context), 0)


def leave_nothing(address: int) -> None:
    """Forget the session at *address* whose client was not let in, unless it was let in when the session was made.

    In TLS 1.2 the handshake itself has kept it.
    """
    made = library.SSL_get_session(address)
    if made and not library.SSL_session_reused(address):
        library.SSL_CTX_remove_session(library.SSL_get_SSL_CTX(address), made)


def stay_resumable(address: int) -> None:
    """Let the session at *address* be resumed although its connection ends without a farewell.

    OpenSSL forgets such a session, as TLS 1.0 asked for; since TLS 1.1 that is wrong (RFC 4346 §7.2.1), and a device
    that lost its network is the one that comes back.
    """
    library.SSL_set_shutdown(address, _BOTH_SAID_GOODBYE)
