"""A socket to listen with, made for an address and not yet bound to it: the same in every program.

``::`` is every address, of IPv4 too, whatever the kernel's default is (sysctl net.ipv6.bindv6only); any other address
is itself alone. A name is its address of IPv4, as the defaults are, or of IPv6 where it has no other.
"""

from __future__ import annotations

import ipaddress
import socket


def unbound(host: str, *, shared: bool = False) -> socket.socket:
    """Return a socket to be bound to *host*, an address or a name; *shared*: with others of this user on one port.

    Like `socket.create_server`, which leaks one if a host name is invalid. Raises OSError without IPv6, where it takes
    that.
    """
    made = socket.socket(_family(host))
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if made.family == socket.AF_INET6:
        made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, not _takes_ipv4(host))
    if shared:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    return made


def _family(host: str) -> socket.AddressFamily:
    """Return which family *host* is of. What cannot be looked up is told when it is bound."""
    if ":" in host:
        return socket.AF_INET6
    try:
        found = {family for family, *_ in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)}
    except (OSError, ValueError):
        return socket.AF_INET
    return socket.AF_INET6 if found == {socket.AF_INET6} else socket.AF_INET


def _takes_ipv4(host: str) -> bool:
    """Whether *host* is every address, or one of IPv4 in the form of IPv6."""
    try:
        address = ipaddress.IPv6Address(host)
    except ValueError:
        return False
    return address.is_unspecified or address.ipv4_mapped is not None
