"""From the user's name for a broker to the address where it listens.

A name may have several addresses, as ``localhost`` has ``127.0.0.1`` and ``::1``, and a broker listens on one of them.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Sequence
from dataclasses import replace

from device_sim.link.tls_dial import Endpoint
from device_sim.link.websocket import MQTT_PATH, checked_path

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
        except (socket.gaierror, UnicodeError) as error:  # The latter of a part that is empty, or longer than a name's.
            why = error.strerror if isinstance(error, socket.gaierror) else "no host can have that name"
            raise OSError(
                f"the broker's host {host} is not found: {why}; correct the name, or give an address, and the name in "
                "the broker's certificate as --server-name"
            ) from error
        # A broker on loopback listens on IPv4 by default.
        found.sort(key=lambda info: info[0] != socket.AF_INET)
        address = await _answering([str(info[4][0]) for info in found], port)
    return Endpoint(address, port, server_name or host)


def path_asked(websocket: bool, path: str | None) -> str | None:
    """Return what the options ask a WebSocket for; None: there is to be none. Raises `ValueError`, in their words."""
    if path is None:
        return MQTT_PATH if websocket else None
    if not websocket:
        raise ValueError("--path is what a WebSocket is asked for: add --websocket, or leave it out")
    try:
        return checked_path(path)
    except ValueError as error:
        raise ValueError(f"--path {error}") from None


def carried(endpoint: Endpoint, path: str | None) -> Endpoint:
    """Return *endpoint* with MQTT over WebSocket at *path*; None: without one."""
    return replace(endpoint, websocket=path is not None, path=path or MQTT_PATH)


def transport_of(path: str | None) -> str:
    """Return the words for a transport: MQTT over WebSocket at *path*, or without one."""
    return "mqtts" if path is None else f"wss, {path}"


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
