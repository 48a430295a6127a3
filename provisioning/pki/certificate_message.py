"""The certificates in a PKCS #7 message (RFC 5652 §5, RFC 7030 §4.1.3), whoever sent it.

The library has OpenSSL read such a message, with the keys of all certificates in it: one whose key describes a curve of
its own takes OpenSSL 0.15 s (`provisioning.pki.named_curves`), and holds all threads meanwhile; on the slowest of the
named curves it is a millisecond. So both are looked for before.
"""

from __future__ import annotations

from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.serialization import pkcs7

from provisioning.pki.named_curves import describes_curve
from provisioning.pki.panic import without_panic

MOST_KEYS: Final = 500
"""Keys on curves: more than anybody's authorities."""
_EC_PUBLIC_KEY: Final = bytes.fromhex("06072a8648ce3d0201")
"""What a key on a curve begins with (RFC 5480 §2.1.1)."""


def certificates_in_message(der: bytes) -> list[x509.Certificate]:
    """Return the certificates in the message *der*. Raises one of `provisioning.pki.extension.UNUSABLE`."""
    if describes_curve(der):
        raise ValueError("a key in it describes a curve of its own")
    if der.count(_EC_PUBLIC_KEY) > MOST_KEYS:
        raise ValueError(f"more than {MOST_KEYS} keys")
    return without_panic(pkcs7.load_der_pkcs7_certificates, der)
