"""Whether two requests or certificates name the same: not whether they write it alike.

Theory
------
A request for a successor repeats the certificate's subject and names (RFC 7030 §4.2.2), in the words of whatever
library made it. What a certificate has as UTF8String, Go and Java write as PrintableString where its characters allow
that, and Go puts DNS names before URIs; so a client that copied them field by field was refused. RFC 5280 §7.1 compares
names without regard to the type of string. Here only these two types are alike, and case counts: the names are ours,
made of letters that say one thing.

Nothing of a request's encoding gets into a certificate: the server builds the names itself.

Rules
-----
1. Equal are bytes that are equal, or equal once every PrintableString is called a UTF8String, or once the alternative
   names are in one order.
2. No I/O and no clock.
"""

from __future__ import annotations

from typing import Final

from provisioning.ca.der import SEQUENCE, SET, children, element

_PRINTABLE: Final = 0x13
_UTF8: Final = b"\x0c"


def same_subject(one: bytes, other: bytes) -> bool:
    """Whether two names, DER as the library has made it, are the same."""
    return one == other or _in_utf8(one) == _in_utf8(other)


def same_alternatives(one: bytes | None, other: bytes) -> bool:
    """Whether two sets of alternative names, DER as the library has made it, are the same; None is no set."""
    return one is not None and (one == other or sorted(children(one)) == sorted(children(other)))


def _in_utf8(name: bytes) -> bytes:
    return element(
        SEQUENCE, b"".join(element(SET, b"".join(sorted(map(_pair, children(rdn))))) for rdn in children(name))
    )


def _pair(encoded: bytes) -> bytes:
    kind, value = children(encoded)
    return element(SEQUENCE, kind + (_UTF8 + value[1:] if value[0] == _PRINTABLE else value))
