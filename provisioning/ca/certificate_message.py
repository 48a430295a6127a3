"""The certs-only CMS message: a SignedData without signers (RFC 5652 §5.1, RFC 7030 §4.2.3).

The library can make one too, but takes three times as long as putting a header in front of a certificate, and
importing its module takes a fiftieth of a service's start. A test compares the two.
"""

from __future__ import annotations

from typing import Final

from provisioning.ca import der

_EXPLICIT_0: Final = b"\xa0"
_SIGNED_DATA: Final = der.object_identifier("1.2.840.113549.1.7.2")
_DATA: Final = der.object_identifier("1.2.840.113549.1.7.1")
_NOBODY: Final = der.element(der.SET, b"")
_BEFORE: Final = der.integer(1) + _NOBODY + der.element(der.SEQUENCE, _DATA)
"""Version, no algorithms, no content."""


def certificate_message(*certificates: bytes) -> bytes:
    """Return the message for *certificates*; all in DER."""
    a_set = b"".join(sorted(certificates))  # X.690 §11.6: in the order of their encodings.
    content = der.element(der.SEQUENCE, _BEFORE + der.element(_EXPLICIT_0, a_set) + _NOBODY)
    return der.element(der.SEQUENCE, _SIGNED_DATA + der.element(_EXPLICIT_0, content))
