"""Limits TLS resumption without proof of possession: notes with each session when the client last used its private key.

Theory
------
Resuming a session needs no private key: its secret is enough, and each resumption begins another session, with another
ticket, that is valid as long as the first one. So whoever once obtained such a secret could return for ever, and so
could a device whose key is gone. RFC 8446 §4.6.1 recommends a limit: a day after the certificate's key was last used
the session is not resumed, and a full handshake follows, signed. OpenSSL stores our note with each session, copies it
to the sessions derived from it, and writes it into tickets that contain their session, encrypted like the rest.

Rules
-----
1. A missing note, or one with a time in the future, counts as too old: a clock that was ahead when the key was used
   gives no client more than a day.
2. Not resuming a session is no refusal: the same handshake continues as a full one, and the client is given a new
   ticket.
3. Where tickets that contain their session cannot be limited so, servers give none (`bound_tickets`).

Handles: tickets that contain their session. Does not handle: remembered sessions, which their tickets only name
(`provisioning.pki.resumed_exchange` does); those of TLS 1.2, which make no others and end two hours after the first.
"""

from __future__ import annotations

import ctypes
import ssl
import time
from typing import Final

from provisioning.pki.openssl import AVAILABLE, address_of_context
from provisioning.pki.openssl_library import callback, declare, frequent, library, string_at

MOST_SECONDS: Final = 24 * 3600
"""How long a session, and those derived from it, can be resumed after the client has used its certificate's key."""
_SIZE: Final = 8
_ISSUED: Final = 1
"""0 would end the connection."""
_DECRYPTED: Final = 5
_DECRYPTED_AND_OLD: Final = 6
"""`SSL_TICKET_SUCCESS`, and the same for a ticket that should be renewed."""
_IGNORE: Final = 2
_USE: Final = 3
_USE_AND_RENEW: Final = 4
"""`SSL_TICKET_RETURN_IGNORE_RENEW`, after which the client is given a new one, `…_USE` and `…_USE_RENEW`."""

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
    """Note that the client of the TLS session at the address *session* (`SSL_SESSION`) has just used its key."""
    if CAN_NOTE:
        frequent.SSL_SESSION_set1_ticket_appdata(session, int(time.time()).to_bytes(_SIZE), _SIZE)


def is_recent(session: int, now: float) -> bool:
    """Whether the client of the TLS session at the address *session* has used its key within a day of *now*."""
    return 0 <= now - shown_at(session) <= MOST_SECONDS


def shown_at(session: int) -> float:
    """Return when the key was used for the TLS session at the address *session*; 0 if unknown."""
    noted, size = ctypes.c_void_p(), ctypes.c_size_t()
    frequent.SSL_SESSION_get0_ticket_appdata(session, ctypes.addressof(noted), ctypes.addressof(size))
    return int.from_bytes(string_at(noted.value, _SIZE)) if noted.value and size.value == _SIZE else 0


def bound_tickets(context: ssl.SSLContext) -> bool:
    """Have a server's *context* reject tickets that contain a session whose client has not used its key for a day.

    Returns False if that is not possible: then it must not give any.
    """
    address = address_of_context(context)
    if not (address and CAN_BOUND):
        return False
    library.SSL_CTX_set_session_ticket_cb(address, _ISSUE, _TAKE, None)
    return True


def _issue(session: int, _argument: int | None) -> int:
    """Note in the ticket being made when the key was used; a resumed session has the note already."""
    if not frequent.SSL_session_reused(session):
        note(frequent.SSL_get_session(session))
    return _ISSUED


def _take(_session: int, held: int | None, _name: int | None, _size: int, status: int, _argument: int | None) -> int:
    """Say whether the session in a ticket is resumed: not if it is missing or unreadable, as without this callback."""
    if held and status in (_DECRYPTED, _DECRYPTED_AND_OLD) and is_recent(held, time.time()):
        return _USE if status == _DECRYPTED else _USE_AND_RENEW
    return _IGNORE


def _open() -> bool:
    """Declare the OpenSSL functions used here; return whether all of them exist."""
    if not AVAILABLE:
        return False
    address, count = ctypes.c_void_p, ctypes.c_size_t
    try:
        for name, result, arguments in (
            ("SSL_SESSION_set1_ticket_appdata", ctypes.c_int, [address, ctypes.c_char_p, count]),
            ("SSL_SESSION_get0_ticket_appdata", ctypes.c_int, [address, address, address]),
            ("SSL_CTX_set_session_ticket_cb", ctypes.c_int, [address, address, address, address]),
        ):
            declare(name, result, arguments)
    except AttributeError:
        return False
    return True


CAN_NOTE: Final = _open()
"""Whether OpenSSL can store notes here."""
_ISSUE: Final = callback(IssueCallback, _issue, refusal=_ISSUED) if CAN_NOTE else 0
_TAKE: Final = callback(TakeCallback, _take, refusal=_IGNORE) if CAN_NOTE else 0
"""One each for all contexts. A ticket without a note is of no use."""
CAN_BOUND = bool(_ISSUE and _TAKE)
"""Whether OpenSSL can ask here about the tickets that it gives and takes. (Not `Final`: tests take it away.)"""
