"""The key exchange of resumed TLS sessions, and how long sessions can be resumed without use of the private key.

Theory
------
In TLS 1.3 a resumed session starts from a secret that both sides have from before, and mixes a fresh key exchange into
it (RFC 8446 §2.2, psk_dhe_ke). If the first handshake was hybrid, X25519 with ML-KEM, an attacker who records today and
has a quantum computer later does not get that secret by breaking X25519, and needs it for everything that follows.
So a fresh X25519 is enough for a resumption, if the client sends a key share for it, as OpenSSL's do: another ML-KEM
would be a quarter of OpenSSL's work for a resumption (docs/decisions/0197).

The secret is passed on from session to session without use of the private key. So its life is limited: a day after the
certificate's key was last used (`provisioning.pki.key_shown`) there is a full handshake, hybrid and signed.

OpenSSL asks for external secrets before it looks up its own, with the name in the ticket: the only moment when the
session is known and the key exchange not yet chosen. Here the session is looked up in OpenSSL's own table, and if it is
there, and will be resumed, the connection's groups are reordered: X25519 first, then the others as before.

Rules
-----
1. A full handshake never uses less than the client offers: one that was expected to be a resumption, and was not,
   fails, and the ticket is useless from then on (`confirm`).
2. The choice of groups is not made here (`provisioning.pki.exchange_groups`): if the machine's OpenSSL configuration
   lacks one of the two, or has a group whose name is unknown, nothing changes.
3. If the age of a session cannot be determined, the handshake fails.
4. Where the life of a session cannot be limited (`CAN_LIMIT`), none is remembered (`provisioning.pki.resumption`). An
   OpenSSL that has no ML-KEM yet (3.3, 3.4) chooses the groups as always.

Does not handle: tickets that contain their session, encrypted; TLS 1.2, which has no key exchange in resumption.
"""

from __future__ import annotations

import ctypes
import ssl
import time
from typing import Final

from provisioning.pki import key_shown
from provisioning.pki.exchange_groups import NAMES, configured, without_finite_fields
from provisioning.pki.openssl import address_of_context
from provisioning.pki.openssl_library import FindCallback, callback, declare, frequent, library, set_null, string_at

_GO_ON: Final = 1
_FAIL: Final = 0
"""What a callback tells OpenSSL. The session would be resumed, however old, if one that has failed let it go on."""
_NOBODY: Final = 0
"""The address of a callback that there is none."""
_NAME_SIZE: Final = 32
_TLS13: Final = 0x0304
_SET_GROUPS: Final = 92
_ASIDE: Final = 2.0
"""Seconds that a session must have left, so that it has not expired when OpenSSL checks it a moment later."""
_X25519: Final = 0x001D
_HYBRID: Final = 0x11EC


def exchange_less(context: ssl.SSLContext, *, hybrid: bool) -> None:
    """Apply this module to a server's *context*, which remembers its sessions; *hybrid*: but keep the groups.

    Its handshakes must be run by `handshake_bounds.shake_hands`, or rule 1 is not enforced; or see `exchange_as_usual`.
    """
    found = _FIND if hybrid or not _ORDER else _FIND_AND_ORDER or _FIND
    library.SSL_CTX_set_psk_find_session_callback(address_of_context(context), found)


def exchange_as_usual(address: int) -> None:
    """Have the handshake of the session at *address*, which resumes none, leave the groups and all sessions alone."""
    if CAN_LIMIT:
        library.SSL_set_psk_find_session_callback(address, _NOBODY)


def begin(address: int) -> None:
    """Note that there is a new session at *address*, and forget any earlier one."""
    _ordered.pop(address, None)


def confirm(address: int) -> None:
    """Raise `ssl.SSLError` if the session at *address*, whose handshake is complete, violates rule 1."""
    name = _ordered.pop(address, None)
    if name is None or frequent.SSL_session_reused(address):
        return
    context = frequent.SSL_get_SSL_CTX(address)
    if found := _remembered(context, name):
        frequent.SSL_CTX_remove_session(context, found)
    raise _not_resumed()


def _not_resumed() -> ssl.SSLError:
    failed = ssl.SSLError(ssl.SSL_ERROR_SSL, "a session was not resumed that had to be")
    failed.reason = "SESSION_NOT_RESUMED"
    return failed


def _find(session: int, name: int, size: int, place: int) -> int:
    return _look_up(session, name, size, place, order=False)


def _find_and_order(session: int, name: int, size: int, place: int) -> int:
    return _look_up(session, name, size, place, order=True)


def _look_up(session: int, name: int, size: int, place: int, *, order: bool) -> int:
    """Tell OpenSSL that there is no external secret, and prepare for its own."""
    set_null(place)
    if size == _NAME_SIZE:
        _prepare(session, string_at(name, size), order=order)
    return _GO_ON


def _prepare(session: int, name: bytes, *, order: bool) -> None:
    context = frequent.SSL_get_SSL_CTX(session)
    found = _remembered(context, name)
    if not found:
        return
    now = time.time()
    if not key_shown.is_recent(found, now):
        frequent.SSL_CTX_remove_session(context, found)
        return
    # With another hash, or expired, it would not be resumed.
    if frequent.SSL_SESSION_get0_cipher(found) != frequent.SSL_get_pending_cipher(session):
        return
    if frequent.SSL_SESSION_get_time_ex(found) + frequent.SSL_SESSION_get_timeout(found) < now + _ASIDE:
        return
    if order and frequent.SSL_ctrl(session, _SET_GROUPS, 0, _ORDER):
        _ordered[session] = name


def _remembered(context: int, name: bytes) -> int:
    """Return the address of the TLS 1.3 session of *context* that a ticket names; 0: none."""
    frequent.SSL_SESSION_set1_id(_named, name, _NAME_SIZE)
    return frequent.OPENSSL_LH_retrieve(frequent.SSL_CTX_sessions(context), _named) or 0


def _open() -> bool:
    """Declare the OpenSSL functions used here; return whether all of them exist."""
    if not key_shown.CAN_NOTE or ssl.OPENSSL_VERSION_INFO < (3, 3):
        return False
    address = ctypes.c_void_p
    try:
        for name, result, arguments in (
            ("SSL_CTX_set_psk_find_session_callback", None, [address, address]),
            ("SSL_set_psk_find_session_callback", None, [address, address]),
            ("SSL_CTX_sessions", address, [address]),
            ("OPENSSL_LH_retrieve", address, [address, address]),
            ("SSL_SESSION_new", address, []),
            ("SSL_SESSION_set1_id", ctypes.c_int, [address, ctypes.c_char_p, ctypes.c_uint]),
            ("SSL_SESSION_set_protocol_version", ctypes.c_int, [address, ctypes.c_int]),
            ("SSL_SESSION_get0_cipher", address, [address]),
            ("SSL_SESSION_get_time_ex", ctypes.c_int64, [address]),
            ("SSL_SESSION_get_timeout", ctypes.c_long, [address]),
        ):
            declare(name, result, arguments)
    except AttributeError:
        return False
    return True


def _order() -> bytes:
    """Return the configured groups with X25519 first, in OpenSSL's format; empty: leave them as they are."""
    groups = without_finite_fields(configured()) if CAN_EXCHANGE_LESS else []
    if not {_X25519, _HYBRID} <= set(groups) or not set(groups) <= set(NAMES):
        return b""
    return ":".join(NAMES[each] for each in (_X25519, *(each for each in groups if each != _X25519))).encode()


_FIND: Final = callback(FindCallback, _find, refusal=_FAIL) if _open() else 0
CAN_LIMIT: Final = bool(_FIND)
"""Whether the life of a remembered session can be limited here: only then are sessions remembered."""
CAN_EXCHANGE_LESS: Final = CAN_LIMIT and ssl.OPENSSL_VERSION_INFO >= (3, 5)
"""Whether OpenSSL has ML-KEM, which a resumption can do without."""
_ORDER_BYTES: Final = _order()
_ORDER_PLACE: Final = ctypes.create_string_buffer(_ORDER_BYTES)
_ORDER: Final = ctypes.addressof(_ORDER_PLACE) if _ORDER_BYTES else 0
_FIND_AND_ORDER: Final = callback(FindCallback, _find_and_order, refusal=_FAIL) if CAN_EXCHANGE_LESS else 0
_ordered: Final[dict[int, bytes]] = {}
"""The sessions whose groups were reordered, and what their client's ticket names."""
_named: Final[int] = library.SSL_SESSION_new() if CAN_LIMIT else 0
"""A session with only a name, used as the key of look-ups."""
if CAN_LIMIT:
    library.SSL_SESSION_set_protocol_version(_named, _TLS13)
