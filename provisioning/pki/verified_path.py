"""The peer's certificate of a TLS session, and the certification path that its handshake has verified."""

from __future__ import annotations

from typing import Any, Final

from provisioning.pki.openssl import address_of, encoded, inner_of
from provisioning.pki.openssl_library import library

_DER: Final = 2
"""`_ssl.ENCODING_DER`."""


def peer_certificate(session: Any) -> bytes | None:
    """Return the certificate of the peer of *session*, in DER, at any time after its handshake; None: it has none.

    *session* as below. While a message of TLS itself has come by half, say a KeyUpdate (RFC 8446 §4.6.3), OpenSSL takes
    the session for one that shakes hands, and `ssl` tells no certificate: a peer would be judged by nobody for as long
    as it keeps the other half back. Raises ValueError then if OpenSSL cannot be called directly.
    """
    try:
        found: bytes | None = session.getpeercert(True)
    except ValueError:
        address = address_of(session)
        if not address:
            raise
        found = encoded(library.SSL_get0_peer_certificate(address)) or None
    return found


def verified_path(session: Any, certificate: bytes | None = None) -> list[bytes]:
    """Return the certification path that the handshake has verified, in DER, from the peer's certificate to the anchor.

    *session* is an `ssl.SSLSocket`, an `ssl.SSLObject`, or the `_ssl` object inside them
    (`broker.sockets.tls_session`). *certificate* is the peer's own, if the caller has it: it is not encoded again.
    Empty if the session was resumed: nothing was verified then.
    """
    # Public from 3.13 on; what it wraps exists since 3.10. Without a path it returns None, or an empty list.
    look_up = getattr(inner_of(session), "get_verified_chain", None)
    found = look_up() if look_up is not None else None
    if certificate is None or not found:
        return [each.public_bytes(_DER) for each in found or ()]
    return [certificate, *[each.public_bytes(_DER) for each in found[1:]]]
