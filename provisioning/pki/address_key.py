"""What an address counts as, where connections are counted by where they come from."""

from __future__ import annotations

import socket
from typing import Final

_IPV4_MAPPED: Final = bytes(10) + b"\xff\xff"


def address_key(host: str) -> bytes:
    """Return what the address *host* counts as: its /64 in IPv6, which is what one subscriber gets.

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
    key = address_key(host)
    if ":" not in host or b"." in key[:4]:
        return key.decode()
    return f"{socket.inet_ntop(socket.AF_INET6, key + bytes(8))}/64"
