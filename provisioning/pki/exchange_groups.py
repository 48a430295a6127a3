"""The groups in which a server exchanges keys: those of this machine's OpenSSL, without the costly finite fields.

Theory
------
A client chooses in which group the server works for it, and may send its share of the key again and again, so it costs
whoever attacks nothing. Beside elliptic curves OpenSSL takes finite fields (RFC 7919): 3,072 bits cost a server seven
times as much as X25519, and the 8,192 bits of OpenSSL before 3.5 a hundred times. No client needs them: every client of
TLS 1.3 has P-256 (RFC 8446 §9.1), and in TLS 1.2 servers here take elliptic curves alone.

Rules
-----
1. Where the machine's OpenSSL configuration says which groups there are, it stays as it says.
2. The order, and which groups OpenSSL considers to be as good as each other, stay as they are.
3. If OpenSSL cannot be called directly (`provisioning.pki.openssl`), nothing here has an effect.
"""

from __future__ import annotations

import contextlib
import functools
import ssl
from collections.abc import Iterable
from typing import Final

from provisioning.pki.openssl import address_of_context
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
}
"""The TLS Supported Groups that OpenSSL has names for (IANA's registry)."""
_FINITE_FIELDS: Final = frozenset(range(0x0100, 0x0105))
_BUILT_IN: Final = {
    (0x11EC, 0x001D, 0x0017, 0x001E, 0x0018, 0x0019, 0x0100, 0x0101): b"DEFAULT:-ffdhe2048:-ffdhe3072",
    (0x001D, 0x0017, 0x001E, 0x0019, 0x0018, 0x0100, 0x0101, 0x0102, 0x0103, 0x0104): (
        b"X25519:secp256r1:X448:secp521r1:secp384r1"
    ),
}
"""What OpenSSL offers by itself, from 3.5 on and before, and how to say the same without finite fields."""
_SUPPORTED_GROUPS: Final = 10
_BEFORE_SESSION_ID: Final = 5 + 4 + 2 + 32
"""Bytes of a ClientHello, with its record header, before the first field of variable length."""


def leave_out_finite_fields(context: ssl.SSLContext) -> None:
    """Have a server's *context* exchange keys on elliptic curves only, unless the machine's configuration decides."""
    address = address_of_context(context)
    if address and (curves := _BUILT_IN.get(configured())) is not None:
        library.SSL_CTX_ctrl(address, _SET_GROUPS_LIST, 0, curves)


def without_finite_fields(groups: Iterable[int]) -> list[int]:
    """Return the others of *groups*."""
    return [each for each in groups if each not in _FINITE_FIELDS]


@functools.cache
def configured() -> tuple[int, ...]:
    """Return the groups that a client with this machine's OpenSSL configuration offers, best first."""
    outgoing = ssl.MemoryBIO()
    asking = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="localhost")
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
