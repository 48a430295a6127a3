"""The certification path that a handshake has verified."""

from __future__ import annotations

from typing import Any, Final

from provisioning.pki.openssl import inner_of

_DER: Final = 2
"""`_ssl.ENCODING_DER`."""


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
