"""Whether two requests or certificates have the same names, even if they are encoded differently.

Theory
------
A request for a successor repeats the certificate's subject and names (RFC 7030 §4.2.2), encoded by whatever
library made it. What a certificate has as UTF8String, Go and Java write as PrintableString where its characters allow
that, and Go puts DNS names before URIs; so a client that copied them field by field was refused. RFC 5280 §7.1 compares
names without regard to the string type. Here only these two types are equivalent, and case counts: the names are
ours, made of unambiguous characters.

Nothing of a request's encoding gets into a certificate: the server builds the names itself.

Rules
-----
1. Two names are equal if their bytes are, or would be with every PrintableString tagged as UTF8String, or with the
   alternative names in the same order.
2. No I/O and no clock.
"""

from __future__ import annotations

from typing import Final

from provisioning.ca.der import SEQUENCE, SET, children, element

_PRINTABLE: Final = 0x13
_UTF8: Final = b"\x0c"


def same_subject(one: bytes, other: bytes) -> bool:
    """Whether two names, in DER as the library encodes it, are the same."""
    return one == other or _in_utf8(one) == _in_utf8(other)


def same_alternatives(one: bytes | None, other: bytes) -> bool:
    """Whether two sets of alternative names, in DER as the library encodes it, are the same; None: no extension."""
    return one is not None and (one == other or sorted(children(one)) == sorted(children(other)))


def _in_utf8(name: bytes) -> bytes:
    return element(
        SEQUENCE, b"".join(element(SET, b"".join(sorted(map(_pair, children(rdn))))) for rdn in children(name))
    )


def _pair(encoded: bytes) -> bytes:
    kind, value = children(encoded)
    return element(SEQUENCE, kind + (_UTF8 + value[1:] if value[0] == _PRINTABLE else value))
