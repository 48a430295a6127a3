"""A client's address as people write it, and the key under which its connections are counted."""

from __future__ import annotations

import socket
from typing import Final

_IPV4_MAPPED: Final = bytes(10) + b"\xff\xff"
_SUBSCRIBER: Final = 8
"""Octets of a /64."""
_SITE: Final = 6
"""Octets of a /48: one site is given no larger network (RFC 6177 §2)."""


def address_key(host: str) -> bytes:
    """Return the counting key of the address *host*: in IPv6 its /64, the least that one subscriber gets.

    An IPv4-mapped IPv6 address counts as IPv4.
    """
    address, packed = _read(host)
    return address.encode() if packed is None else packed[:_SUBSCRIBER]


def plain(host: str) -> str:
    """Return the address of a peer as people write it.

    A socket that listens on ``::`` reports the IPv4 address 192.0.2.7 as ``::ffff:192.0.2.7``.
    """
    return _read(host)[0] if host.startswith("::ffff:") else host


def shown(host: str) -> str:
    """Return the same as text: ``192.0.2.7``, ``2001:db8:0:1::/64``."""
    address, packed = _read(host)
    return address if packed is None else _prefix(packed, _SUBSCRIBER)


def network_of(host: str) -> str:
    """Return the network that the address *host* is in: its /24 in IPv4, in IPv6 its /48, which has 65,536 of /64."""
    address, packed = _read(host)
    return f"{address.rpartition('.')[0]}.0/24" if packed is None else _prefix(packed, _SITE)


def _read(host: str) -> tuple[str, bytes | None]:
    """Return the address, unmapped if it is IPv4, and its 16 octets if it is IPv6."""
    if ":" not in host:
        return host, None
    packed = socket.inet_pton(socket.AF_INET6, host.partition("%")[0])
    return (socket.inet_ntoa(packed[12:]), None) if packed.startswith(_IPV4_MAPPED) else (host, packed)


def _prefix(packed: bytes, octets: int) -> str:
    return f"{socket.inet_ntop(socket.AF_INET6, packed[:octets].ljust(16, bytes(1)))}/{8 * octets}"
