"""The groups in which a server exchanges keys: those of this machine's OpenSSL, without the costly finite fields.

Theory
------
A client chooses in which group the server works for it, and may send its share of the key again and again, so it costs
whoever attacks nothing. Beside elliptic curves OpenSSL takes finite fields (RFC 7919): 3,072 bits cost a server seven
times as much as X25519, and the 8,192 bits of OpenSSL before 3.5 a hundred times. No client needs them: every client of
TLS 1.3 has P-256 (RFC 8446 §9.1), and in TLS 1.2 servers here take elliptic curves alone.

Rules
-----
1. Where the machine's OpenSSL configuration says which groups there are, it stays as it says, but for the finite
   fields: a distribution may list all of them, up to 8,192 bits. If it names nothing else, or a group whose name is
   unknown here, nothing changes.
2. The order stays as it is. So does which groups OpenSSL considers to be as good as each other, if it is OpenSSL's own
   choice: from 3.5 on OpenSSL is asked for it, since it changes with the version.
3. If OpenSSL cannot be called directly (`provisioning.pki.openssl`), nothing here has an effect.
"""

from __future__ import annotations

import contextlib
import functools
import ssl
from collections.abc import Iterable
from typing import Final

from provisioning.pki.openssl import address_of_context, forget_errors
from provisioning.pki.openssl_library import library

_SET_GROUPS_LIST: Final = 92
NAMES: Final = {
    0x0017: "secp256r1",
    0x0018: "secp384r1",
    0x0019: "secp521r1",
    0x001D: "X25519",
    0x001E: "X448",
    0x0100: "ffdhe2048",
    0x0101: "ffdhe3072",
    0x0102: "ffdhe4096",
    0x0103: "ffdhe6144",
    0x0104: "ffdhe8192",
    0x11EB: "SecP256r1MLKEM768",
    0x11EC: "X25519MLKEM768",
    0x11ED: "SecP384r1MLKEM1024",
    0x11EE: "curveSM2MLKEM768",
    0x0029: "curveSM2",
}
"""The TLS Supported Groups that OpenSSL has names for (IANA's registry)."""
_FINITE_FIELDS: Final = frozenset(range(0x0100, 0x0105))
_DEFAULT: Final = b"DEFAULT"
"""What OpenSSL offers by itself, from 3.5 on."""
_SUPPORTED_GROUPS: Final = 10
_BEFORE_SESSION_ID: Final = 5 + 4 + 2 + 32
"""Bytes of a ClientHello, with its record header, before the first field of variable length."""


def leave_out_finite_fields(context: ssl.SSLContext) -> None:
    """Have a server's *context* exchange keys on elliptic curves only (rule 1)."""
    address = address_of_context(context)
    if address and (curves := _curves_of(configured())):
        library.SSL_CTX_ctrl(address, _SET_GROUPS_LIST, 0, curves)


def without_finite_fields(groups: Iterable[int]) -> list[int]:
    """Return the others of *groups*."""
    return [each for each in groups if each not in _FINITE_FIELDS]


@functools.cache
def _curves_of(groups: tuple[int, ...]) -> bytes:
    """Return how to say *groups* without finite fields to OpenSSL; nothing: leave them as they are."""
    curves = without_finite_fields(groups)
    if not curves or len(curves) == len(groups):
        return b""
    if groups == _offered(_DEFAULT):
        return b"".join([_DEFAULT, *[f":-{NAMES[each]}".encode() for each in groups if each in _FINITE_FIELDS]])
    return ":".join(NAMES[each] for each in curves).encode() if set(curves) <= set(NAMES) else b""


@functools.cache
def configured() -> tuple[int, ...]:
    """Return the groups that a client with this machine's OpenSSL configuration offers, best first."""
    return _offered()


def _offered(named: bytes = b"") -> tuple[int, ...]:
    """Return the groups that a client offers, told to take those *named*; none if OpenSSL does not know them."""
    context, outgoing = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), ssl.MemoryBIO()
    if named and not library.SSL_CTX_ctrl(address_of_context(context), _SET_GROUPS_LIST, 0, named):
        forget_errors()
        return ()
    asking = context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="localhost")
    with contextlib.suppress(ssl.SSLWantReadError):
        asking.do_handshake()
    hello = outgoing.read()
    at = _BEFORE_SESSION_ID
    at += 1 + hello[at]
    at += 2 + int.from_bytes(hello[at : at + 2])
    at += 1 + hello[at]
    at += 2
    while at < len(hello):
        kind, size = int.from_bytes(hello[at : at + 2]), int.from_bytes(hello[at + 2 : at + 4])
        at += 4
        if kind == _SUPPORTED_GROUPS:
            return tuple([int.from_bytes(hello[each : each + 2]) for each in range(at + 2, at + size, 2)])
        at += size
    return ()
