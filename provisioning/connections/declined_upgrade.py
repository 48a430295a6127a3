"""Requests with Upgrade: parsed as if they had none (RFC 9110 §7.8, a server may ignore Upgrade).

The parser takes what follows the head of such a request for the other protocol, although the server has not agreed. A
client that offers HTTP/2 with its first request over plain HTTP, as Java's does with every POST, would lose its body,
and the body would be parsed as the next request.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

_OFFERS: Final = frozenset({b"connection", b"upgrade", b"http2-settings"})
_KEPT: Final = frozenset({b"close", b"keep-alive"})
"""The options of Connection that are kept; those that name the offer are not."""


def head_without_upgrade(method: bytes, target: bytes, version: str, headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Return the head of the same request without its offer; *headers* in their order, names in lower case."""
    said = [token.strip().lower() for name, value in headers if name == b"connection" for token in value.split(b",")]
    kept = [(name, value) for name, value in headers if name not in _OFFERS]
    kept += [(b"connection", token) for token in said if token in _KEPT]
    lines = b"".join(b"%b: %b\r\n" % header for header in kept)
    return b"%b %b HTTP/%b\r\n%b\r\n" % (method, target, version.encode("ascii"), lines)
