"""When a client has last shown its certificate's key, kept with its TLS session; and an end to returns without that.

Theory
------
A session that is resumed asks for no key: its secret is enough, and each return begins another session, with another
ticket, that is good as long as the first one. So whoever once got hold of such a secret could come back for ever, and
so could a device whose key is gone. RFC 8446 §4.6.1 recommends an end: here a day after the certificate's key was shown
the session is not resumed, and a full handshake follows, signed. OpenSSL keeps a note of ours with each session, copies
it to the sessions that are made of it, and writes it into tickets that hold their session, encrypted as all else there.

Rules
-----
1. What nobody has noted, and what was noted at a time that is still to come, is too long ago: a clock that was ahead
   when the key was shown gives nobody more than a day.
2. A session that is not resumed is no refusal: the same handshake goes on as a full one, and the client is given
   another ticket.
3. Where OpenSSL cannot be asked (`provisioning.pki.openssl`), nothing here has an effect.

Handles: tickets that hold their session. Does not handle: sessions that are remembered, and named by their tickets
(`provisioning.pki.resumed_exchange` looks there); TLS 1.2's, which make no others and end two hours after the first.
"""

from __future__ import annotations

import ctypes
import ssl
import time
from typing import Final

from provisioning.pki.openssl import AVAILABLE, address_of_context, callback, declare, library

MOST_SECONDS: Final = 24 * 3600
"""How long a session is resumed, and those that are made of it, after the client has shown its certificate's key."""
_SIZE: Final = 8
_DECRYPTED, _DECRYPTED_AND_OLD = 5, 6
"""`SSL_TICKET_SUCCESS`, and that it should be renewed."""
_IGNORE, _USE, _USE_AND_RENEW = 2, 3, 4
"""`SSL_TICKET_RETURN_IGNORE_RENEW`, whose client is given another, `…_USE` and `…_USE_RENEW`."""

IssueCallback: Final = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
TakeCallback: Final = ctypes.CFUNCTYPE(
    ctypes.c_int,
    ctypes.c_void_p,
    ctypes.c_void_p,
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_int,
    ctypes.c_void_p,
)


def note(session: int) -> None:
    """Note that the client of the TLS session at the address *session* (`SSL_SESSION`) has just shown its key."""
    if CAN_NOTE:
        library.SSL_SESSION_set1_ticket_appdata(session, int(time.time()).to_bytes(_SIZE), _SIZE)


def is_recent(session: int, now: float) -> bool:
    """Whether the client of the TLS session at the address *session* has shown its key within a day of *now*."""
    return 0 <= now - shown_at(session) <= MOST_SECONDS


def shown_at(session: int) -> float:
    """Return when the key was shown for the TLS session at the address *session*; 0 where nobody knows."""
    noted, size = ctypes.c_void_p(), ctypes.c_size_t()
    library.SSL_SESSION_get0_ticket_appdata(session, ctypes.byref(noted), ctypes.byref(size))
    return int.from_bytes(ctypes.string_at(noted, _SIZE)) if size.value == _SIZE else 0


def bound_tickets(context: ssl.SSLContext) -> None:
    """Have a server's *context* take no ticket that holds a session whose client has not shown its key for a day."""
    address = address_of_context(context)
    if address and _ISSUE is not None and _TAKE is not None:
        library.SSL_CTX_set_session_ticket_cb(address, _ISSUE, _TAKE, None)


def _issue(session: int, _argument: int | None) -> int:
    """Note, in the ticket that is being made, when the key was shown; a session that was resumed has it from before."""
    try:
        if not library.SSL_session_reused(session):
            note(library.SSL_get_session(session))
    except BaseException:  # noqa: BLE001, S110 - nothing can be raised through OpenSSL: it is a ticket of no use, then
        pass
    return 1


def _take(_session: int, held: int | None, _name: int | None, _size: int, status: int, _argument: int | None) -> int:
    """Say whether the session in a ticket is resumed: not if there is none, or it cannot be read, as without this."""
    try:
        if held and status in (_DECRYPTED, _DECRYPTED_AND_OLD) and is_recent(held, time.time()):
            return _USE if status == _DECRYPTED else _USE_AND_RENEW
    except BaseException:  # noqa: BLE001, S110 - nothing can be raised through OpenSSL
        pass
    return _IGNORE


def _open() -> bool:
    """Make what is asked of OpenSSL callable; return whether there is all of it."""
    if not AVAILABLE:
        return False
    address, count = ctypes.c_void_p, ctypes.c_size_t
    try:
        for name, result, arguments in (
            ("SSL_SESSION_set1_ticket_appdata", ctypes.c_int, [address, ctypes.c_char_p, count]),
            ("SSL_SESSION_get0_ticket_appdata", ctypes.c_int, [address, address, address]),
            ("SSL_CTX_set_session_ticket_cb", ctypes.c_int, [address, IssueCallback, TakeCallback, address]),
        ):
            declare(library, name, result, arguments)
    except AttributeError:
        return False
    return True


CAN_NOTE: Final = _open()
"""Whether OpenSSL keeps notes here."""
_ISSUE: Final = callback(IssueCallback, _issue) if CAN_NOTE else None
_TAKE: Final = callback(TakeCallback, _take) if CAN_NOTE else None
"""One each for all contexts, and never dropped: OpenSSL knows only their addresses."""
