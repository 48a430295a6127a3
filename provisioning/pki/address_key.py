"""What an address counts as, where connections are counted by where they come from."""

from __future__ import annotations

import socket
from typing import Final

_IPV4_MAPPED: Final = bytes(10) + b"\xff\xff"
_SITE: Final = 6
"""Octets of a /48: nobody is given more as one site (RFC 6177 §2)."""


def address_key(host: str) -> bytes:
    """Return what the address *host* counts as: its /64 in IPv6, which is what one subscriber gets at the least.

    An IPv4 address in IPv6 clothes is an IPv4 one.
    """
    if ":" not in host:
        return host.encode()
    packed = socket.inet_pton(socket.AF_INET6, host.partition("%")[0])
    if packed.startswith(_IPV4_MAPPED):
        return socket.inet_ntoa(packed[12:]).encode()
    return packed[:8]


def shown(host: str) -> str:
    """Return the same for people: ``192.0.2.7``, ``2001:db8:0:1::/64``."""
    if ":" not in host:
        return host
    packed = socket.inet_pton(socket.AF_INET6, host.partition("%")[0])
    if packed.startswith(_IPV4_MAPPED):
        return socket.inet_ntoa(packed[12:])
    return f"{socket.inet_ntop(socket.AF_INET6, packed[:8] + bytes(8))}/64"


def network_of(host: str) -> str:
    """Return the network that the address *host* is in: its /24 in IPv4, in IPv6 its /48, which has 65,536 of /64."""
    if ":" in host:
        packed = socket.inet_pton(socket.AF_INET6, host.partition("%")[0])
        if not packed.startswith(_IPV4_MAPPED):
            return f"{socket.inet_ntop(socket.AF_INET6, packed[:_SITE].ljust(16, bytes(1)))}/48"
        host = socket.inet_ntoa(packed[12:])
    return f"{host.rpartition('.')[0]}.0/24"
