"""Addresses of the machine's own network, such as a cloud's metadata service, where no external service can be.

Theory
------
Clouds give credentials to any request from the right machine: most at a link-local address, some at one that looks
like any other. An IPv6 address may embed another: the kernel, a tunnel or a gateway extracts the IPv4 address
and connects there. So both the address and every IPv4 address in it are checked::

    169.254.169.254 = ::ffff:169.254.169.254 = 64:ff9b::a9fe:a9fe = 2002:a9fe:a9fe:: = …

Loopback and private addresses are not among them: mirrors are there (docs/decisions/0142).

Handles: the forms of RFC 4291, 6052, 8215, 2765, 3056, 4380 and 5214.
Does not handle: a network-specific translation prefix (RFC 6052 §2.2), which looks like any other address.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address
from typing import Final

_SERVICES: Final = tuple(
    ipaddress.ip_network(each)
    for each in (
        "100.100.100.200",  # Alibaba
        "168.63.129.16",  # Azure
        "192.0.0.192",  # Oracle
        "fd00:ec2::/32",  # Amazon
        "fd20:ce::/32",  # Google
        "fd00:42::/32",  # Scaleway
    )
)
"""Clouds' own addresses that are not link-local."""

# The last 32 bits are an IPv4 address.
_ENDS: Final = tuple(map(ipaddress.IPv6Network, ("::/96", "::ffff:0:0/96", "::ffff:0:0:0/96", "64:ff9b::/96")))
_ISATAP: Final = (bytes.fromhex("00005efe"), bytes.fromhex("02005efe"))
_TRANSLATED: Final = ipaddress.IPv6Network("64:ff9b:1::/48")
# Positions of the four octets under a translator's prefix of 48, 56, 64 and 96 bits; octet 8 is 0 (RFC 6052 §2.2).
_PLACES: Final = ((6, 7, 9, 10), (7, 9, 10, 11), (9, 10, 11, 12), (12, 13, 14, 15))


def is_of_own_network(host: str) -> bool:
    """Whether only the machine's own network could answer at the address *host*; ValueError for a name."""
    address = ipaddress.ip_address(host)
    if any(_is_service(each) or _is_nobodys(each) for each in (address, *_led_to(address))):
        return True
    return any(map(_is_service, _perhaps_led_to(address)))


def _is_service(address: IPv4Address | IPv6Address) -> bool:
    return address.is_link_local or any(address in network for network in _SERVICES)


def _is_nobodys(address: IPv4Address | IPv6Address) -> bool:
    if isinstance(address, IPv6Address):
        return address.is_multicast or address.is_unspecified
    return address.is_multicast or address.is_reserved or address.packed[0] == 0


def _led_to(address: IPv4Address | IPv6Address) -> Iterator[IPv4Address]:
    """Yield the IPv4 addresses that *address* embeds."""
    if isinstance(address, IPv4Address) or address.is_loopback:
        return
    octets = address.packed
    if any(address in network for network in _ENDS) or octets[8:12] in _ISATAP:
        yield IPv4Address(octets[12:])
    if address.sixtofour is not None:
        yield address.sixtofour
    if address.teredo is not None:
        yield from address.teredo


def _perhaps_led_to(address: IPv4Address | IPv6Address) -> Iterator[IPv4Address]:
    """Yield the IPv4 addresses that *address* may embed, by its translator's prefix; the rest are meaningless."""
    if isinstance(address, IPv6Address) and address in _TRANSLATED:
        for places in _PLACES:
            yield IPv4Address(bytes(address.packed[place] for place in places))
