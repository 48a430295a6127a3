"""What an address counts as, where connections are counted by where they come from."""

from __future__ import annotations

import socket
from typing import Final

_IPV4_MAPPED: Final = bytes(10) + b"\xff\xff"
_SUBSCRIBER: Final = 8
"""Octets of a /64."""
_SITE: Final = 6
"""Octets of a /48: nobody is given more as one site (RFC 6177 §2)."""


def address_key(host: str) -> bytes:
    """Return what the address *host* counts as: its /64 in IPv6, which is what one subscriber gets at the least.

    An IPv4 address in IPv6 clothes is an IPv4 one.
    """
    plain, packed = _read(host)
    return plain.encode() if packed is None else packed[:_SUBSCRIBER]


def shown(host: str) -> str:
    """Return the same for people: ``192.0.2.7``, ``2001:db8:0:1::/64``."""
    plain, packed = _read(host)
    return plain if packed is None else _prefix(packed, _SUBSCRIBER)


def network_of(host: str) -> str:
    """Return the network that the address *host* is in: its /24 in IPv4, in IPv6 its /48, which has 65,536 of /64."""
    plain, packed = _read(host)
    return f"{plain.rpartition('.')[0]}.0/24" if packed is None else _prefix(packed, _SITE)


def _read(host: str) -> tuple[str, bytes | None]:
    """Return the address in IPv4's own clothes, or its 16 octets where it is an IPv6 one."""
    if ":" not in host:
        return host, None
    packed = socket.inet_pton(socket.AF_INET6, host.partition("%")[0])
    return (socket.inet_ntoa(packed[12:]), None) if packed.startswith(_IPV4_MAPPED) else (host, packed)


def _prefix(packed: bytes, octets: int) -> str:
    return f"{socket.inet_ntop(socket.AF_INET6, packed[:octets].ljust(16, bytes(1)))}/{8 * octets}"
