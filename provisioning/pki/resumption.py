"""What a server lets clients resume: TLS sessions that it keeps in memory, or nothing at all.

Theory
------
By default, OpenSSL issues tickets that are encrypted copies of the session, including the client's certificate, two per
handshake. A server that remembers its sessions issues one ticket of 32 bytes, when it has something to write anyway
(docs/decisions/0097): the broker.

Whoever has a session's secret resumes it, without its certificate's key. So a server whose answer to one request lasts
longer than any session, a certificate, resumes nothing (`resume_nothing`, docs/decisions/0314): provisioning. Nor does
the broker at its port for operators, which has the context of the devices' ports (`stand_apart`, docs/decisions/0351).

Rules
-----
1. If sessions cannot be kept (`CAN_REMEMBER`), OpenSSL uses its default, tickets that contain them, and nothing here
   has an effect but `forget`.
2. A ticket is used once: a client that used it is given another.
3. A client that passes TLS but is not admitted gets no ticket, and its session is not kept: it would take 6 KB per
   attempt, and displace sessions of admitted clients. A session it came with stays if it is refused for now. If its
   certificate is refused, it goes (`forget`): the client may have another by now, to show in a full handshake.
4. A session can be resumed for a day after its client has used its certificate's key (`provisioning.pki.key_shown`), in
   TLS 1.3, with a cheaper key exchange than the first (`provisioning.pki.resumed_exchange`).
5. Where nothing is resumed, no ticket is given and no session kept, and what a client has from before, or has made up,
   is looked for among none: it gets a full handshake.
"""

from __future__ import annotations

import secrets
import ssl
from typing import Any, Final

from provisioning.pki import key_shown
from provisioning.pki.openssl import address_of, address_of_context
from provisioning.pki.openssl_library import frequent, library
from provisioning.pki.resumed_exchange import CAN_LIMIT, exchange_as_usual, exchange_less

CAN_REMEMBER: Final = CAN_LIMIT and ssl.OPENSSL_VERSION_INFO >= (3, 3)
"""Whether sessions can be kept in memory: older versions may let them grow without bound (CVE-2024-2511), and none is
kept whose life cannot be limited."""
_SET_SESSION_CACHE_SIZE: Final = 42
_SET_SESSION_CACHE_MODE: Final = 44
_CACHE_OFF: Final = 0
_BOTH_SAID_GOODBYE: Final = 3
_LONGEST_ID: Final = 32
"""Bytes of an id context."""


def resume_nothing(context: ssl.SSLContext) -> None:
    """Have a server's *context* make a full handshake with every client, whatever the client offers to resume.

    If OpenSSL cannot be called directly, it still remembers TLS 1.2 sessions by their id: the caller ends connections
    that resume one (`provisioning.connections.peer_certificate_protocol`).
    """
    context.options |= ssl.OP_NO_TICKET  # An encrypted one is then not decrypted either.
    context.num_tickets = 0
    if address := address_of_context(context):
        library.SSL_CTX_ctrl(address, _SET_SESSION_CACHE_MODE, _CACHE_OFF, None)


def stand_apart(address: int) -> None:
    """Have the server's session at *address* be a new one, before its handshake, whatever its client offers to resume.

    For one port of several with the same context: OpenSSL resumes a session only among those of the same id context,
    and this one gets its own. What the client has offered can still be resumed elsewhere. Nor are keys exchanged as for
    a return: the table that is searched for one's session knows nothing of id contexts.
    """
    exchange_as_usual(address)
    library.SSL_set_session_id_context(address, secrets.token_bytes(_LONGEST_ID), _LONGEST_ID)


def remember_sessions(context: ssl.SSLContext, most: int, *, hybrid: bool = False) -> bool:
    """Keep up to *most* TLS sessions of a server's *context* in memory; return whether that is possible.

    A client resumes with a ticket of 32 bytes that names its session, instead of one that is an encrypted copy of it.
    No ticket is sent automatically: see `offer_ticket`. The least recent go first, and all after two hours. A
    connection that ends without close_notify reads as ended: as an error, it would cost the client its session. With
    *hybrid*, a resumed session exchanges keys as the first did, with ML-KEM.
    """
    if CAN_REMEMBER:
        context.options |= ssl.OP_NO_TICKET | ssl.OP_IGNORE_UNEXPECTED_EOF
        context.num_tickets = 0
        library.SSL_CTX_ctrl(address_of_context(context), _SET_SESSION_CACHE_SIZE, most, None)
        exchange_less(context, hybrid=hybrid)
    return CAN_REMEMBER


def offer_ticket(address: int, *, resumed: bool) -> None:
    """Send a ticket before what is written next to the session at *address*; the one the client came with is used up.

    Not before the handshake is complete. TLS 1.3 only: in TLS 1.2 the handshake itself has named the session.
    """
    came_with = 0
    if resumed:
        came_with = frequent.SSL_get_session(address)
    else:
        key_shown.note(frequent.SSL_get_session(address))
    if frequent.SSL_new_session_ticket(address) and came_with:
        frequent.SSL_CTX_remove_session(frequent.SSL_get_SSL_CTX(address), came_with)


def forget_sessions(context: ssl.SSLContext) -> None:
    """Forget what `remember_sessions` keeps: no client can resume with *context*. Its connections stay open."""
    if CAN_REMEMBER:
        library.SSL_CTX_flush_sessions(address_of_context(context), 0)


def leave_nothing(address: int) -> None:
    """Forget the session at *address*, whose client was not admitted, unless it was admitted when the session was made.

    In TLS 1.2 the handshake itself has stored the session.
    """
    made = frequent.SSL_get_session(address)
    if made and not frequent.SSL_session_reused(address):
        frequent.SSL_CTX_remove_session(frequent.SSL_get_SSL_CTX(address), made)


def forget(server_side: Any, *, at_any_price: bool) -> None:
    """Forget the session that the client of *server_side* (as in `ssl`) has resumed: it cannot do so again. None: gone.

    A ticket that contains its session cannot be taken back. Where there are such, the context resumes none from now on
    if it must be so *at_any_price*; otherwise the client may come back until its ticket ends.
    """
    if server_side is None:
        return
    address = address_of(server_side)
    came_with = frequent.SSL_get_session(address) if address else 0
    if came_with:
        frequent.SSL_CTX_remove_session(frequent.SSL_get_SSL_CTX(address), came_with)
    if not at_any_price:
        return
    context: ssl.SSLContext = server_side.context
    if not context.options & ssl.OP_NO_TICKET:
        context.options |= ssl.OP_NO_TICKET  # What clients hold is then looked for among remembered sessions.
        context.num_tickets = 0


def stay_resumable(address: int) -> None:
    """Let the session at *address* be resumed even if its connection ends without close_notify.

    OpenSSL forgets such a session, as TLS 1.0 required; since TLS 1.1 that is wrong (RFC 4346 §7.2.1), and a device
    that lost its network is the one that comes back.
    """
    frequent.SSL_set_shutdown(address, _BOTH_SAID_GOODBYE)
