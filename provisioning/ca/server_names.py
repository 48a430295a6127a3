"""Names under which a server may be reached, as a certificate may hold them: exact host names, without wildcards."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from typing import Final

IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address

_HOST_NAME: Final = re.compile(
    # RFC 1123 §2.1 as a certificate compares it: lower case, labels of 1 to 63, 253 in all.
    r"(?=.{1,253}\Z)[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*",
    re.ASCII,
)


class InvalidServerName(ValueError):
    """The text is not a host name that a certificate may hold."""


def check_host_name(name: str) -> str:
    """Return *name* if a certificate may hold it as a DNS name; raise `InvalidServerName` otherwise."""
    if not _HOST_NAME.fullmatch(name):
        form = "write lower-case letters, digits and '-', with one dot between labels"
        raise InvalidServerName(f"{name[:80]!r} is not a host name: {form}")
    return name


def split_names(names: Iterable[str]) -> tuple[tuple[str, ...], tuple[IpAddress, ...]]:
    """Return the host names among *names*, in lower case, and the addresses; raise `InvalidServerName`."""
    dns_names: list[str] = []
    addresses: list[IpAddress] = []
    for name in dict.fromkeys(names):
        try:
            addresses.append(ipaddress.ip_address(name))
        except ValueError:
            dns_names.append(check_host_name(name.lower()))
    return tuple(dns_names), tuple(addresses)
