"""Which addresses only this machine can reach: what listens on another one has to be allowed explicitly."""

from __future__ import annotations

import functools
import ipaddress
import socket
from typing import Final

_USUAL: Final = "127.0.0.1"


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


@functools.cache
def own_loopback() -> str:
    """Return the loopback address of this machine: 127.0.0.1, or ``::1`` where it has no IPv4."""
    with socket.socket() as trial:
        try:
            trial.bind((_USUAL, 0))
        except OSError:
            return "::1"
    return _USUAL
