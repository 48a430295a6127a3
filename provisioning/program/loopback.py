"""Which addresses only this machine can reach: what listens on another one has to be allowed explicitly.

And under which names a program on this machine asks for what is for this machine alone. A browser on it asks for any
page that it shows: an attacker's page at ``http://his.example:9100`` may have that name point to 127.0.0.1 meanwhile
(DNS rebinding), and what is there is then of the page's own origin, which it may read. Only the Host header tells. It
has the name that the attacker owns, which is neither an address nor ``localhost`` (RFC 6761 §6.3).
"""

from __future__ import annotations

import functools
import ipaddress
import re
import socket
from typing import Final

_USUAL: Final = "127.0.0.1"
_HOST: Final = re.compile(r"(?:\[([^\]]*)\]|([^:]*))(?::[0-9]*)?")
_OWN_NAMES: Final = frozenset({"", "localhost", "ip6-localhost", "ip6-loopback"})
"""What a machine calls itself, in Debian's /etc/hosts; nothing: the client is older than Host, and no browser."""


def is_loopback(host: str) -> bool:
    """Whether *host* is a loopback address, or the name of one."""
    return host == "localhost" or is_loopback_address(host)


def is_loopback_address(host: str) -> bool:
    """Whether *host* is a loopback address. A name is none: it may point anywhere tomorrow."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped.is_loopback  # As since Python 3.13.
    return address.is_loopback


def is_nobodys_name(host: str) -> bool:
    """Whether *host*, a Host header, is an address or this machine's own name, and not one that others may own."""
    found = _HOST.fullmatch(host.strip().lower())
    if found is None:
        return False
    address, name = found.groups()
    try:
        ipaddress.ip_address(name if address is None else address)
    except ValueError:
        return address is None and (name in _OWN_NAMES or name.endswith(".localhost"))
    return True


@functools.cache
def own_loopback() -> str:
    """Return the loopback address of this machine: 127.0.0.1, or ``::1`` where it has no IPv4."""
    with socket.socket() as trial:
        try:
            trial.bind((_USUAL, 0))
        except OSError:
            return "::1"
    return _USUAL
