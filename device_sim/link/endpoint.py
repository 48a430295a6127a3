"""From the user's name for a broker to the address where it listens."""

from __future__ import annotations

import asyncio
import ipaddress
import socket

from device_sim.link.tls_dial import Endpoint


async def endpoint_of(host: str, port: int, server_name: str | None) -> Endpoint:
    """Return the address of *host*; the name in its certificate must be *server_name*, or else *host* itself.

    Raises `OSError` if there is no such host.
    """
    try:
        address: str | int = str(ipaddress.ip_address(host))
    except ValueError:
        try:
            found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except socket.gaierror as error:
            raise OSError(f"{host} is not found: {error.strerror}") from error
        # A broker on loopback listens on IPv4 by default.
        address = min(found, key=lambda info: info[0] != socket.AF_INET)[4][0]
    return Endpoint(str(address), port, server_name or host)
