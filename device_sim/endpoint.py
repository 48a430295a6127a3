"""From what a user calls a broker to where it listens."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
from urllib.parse import urlsplit

from device_sim.tls_dial import Endpoint

_SCHEME, _PORT = "mqtts", 8883


async def endpoint_of(host: str, port: int, server_name: str | None) -> Endpoint:
    """Return where *host* is; the name in its certificate must be *server_name*, or *host* itself.

    Raises `OSError` where there is no such host.
    """
    try:
        address: str | int = str(ipaddress.ip_address(host))
    except ValueError:
        try:
            found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except socket.gaierror as error:
            raise OSError(f"{host} is not found: {error.strerror}") from error
        # A broker on loopback listens on IPv4 unless told otherwise.
        address = min(found, key=lambda info: info[0] != socket.AF_INET)[4][0]
    return Endpoint(str(address), port, server_name or host)


def address_in(text: str) -> tuple[str, int]:
    """Return host and port of ``HOST``, ``HOST:PORT`` or ``mqtts://HOST:PORT``, which is what our broker prints.

    Raises `ValueError` with what to write.
    """
    with contextlib.suppress(ValueError):  # Its colons are no port.
        return str(ipaddress.IPv6Address(text)), _PORT
    what = "write HOST or HOST:PORT, as in localhost:8883 or [::1]:8883; it is spoken to by TLS"
    try:
        parts = urlsplit(text if "://" in text else f"{_SCHEME}://{text}")
        port = _PORT if parts.port is None else parts.port
    except ValueError as error:  # Its port is none.
        raise ValueError(what) from error
    rest = (parts.username, parts.path.strip("/"), parts.query, parts.fragment)
    if parts.scheme != _SCHEME or not parts.hostname or any(rest) or port == 0:
        raise ValueError(what)
    return parts.hostname, port
