"""From the user's name for a broker to the address where it listens.

A name may have several addresses, as ``localhost`` has ``127.0.0.1`` and ``::1``, and a broker listens on one of them.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Sequence

from device_sim.link.tls_dial import Endpoint

_SOON = 3.0
"""Seconds for an address to answer, where there is another."""


async def endpoint_of(host: str, port: int, server_name: str | None) -> Endpoint:
    """Return the address of *host*; the name in its certificate must be *server_name*, or else *host* itself.

    Raises `OSError` if there is no such host.
    """
    try:
        address = str(ipaddress.ip_address(host))
    except ValueError:
        try:
            found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except socket.gaierror as error:
            raise OSError(f"{host} is not found: {error.strerror}") from error
        # A broker on loopback listens on IPv4 by default.
        found.sort(key=lambda info: info[0] != socket.AF_INET)
        address = await _answering([str(info[4][0]) for info in found], port)
    return Endpoint(address, port, server_name or host)


async def _answering(addresses: Sequence[str], port: int) -> str:
    """Return the first of *addresses* where somebody listens; if there is none, the first: who connects is told why."""
    for address in addresses if len(addresses) > 1 else ():
        with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as plain:
            plain.setblocking(False)
            try:
                async with asyncio.timeout(_SOON):
                    await asyncio.get_running_loop().sock_connect(plain, (address, port))
            except OSError:  # Also when the time is over.
                continue
            return address
    return addresses[0]
