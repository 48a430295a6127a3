"""PROXY headers as proxies send them, made here independently of what reads them."""

from __future__ import annotations

import ipaddress
import struct
from collections.abc import Iterable

SIGNATURE = bytes.fromhex("0d0a0d0a000d0a515549540a")
STREAM = 1
Address = tuple[str, int]


def line(client: Address, server: Address = ("192.0.2.1", 8883)) -> bytes:
    """Return a header of version 1."""
    family = "TCP6" if ":" in client[0] else "TCP4"
    return f"PROXY {family} {client[0]} {server[0]} {client[1]} {server[1]}\r\n".encode()


def block(
    client: Address | None,
    server: Address | None = None,
    *,
    command: int = 0x21,
    fields: Iterable[tuple[int, bytes]] = (),
) -> bytes:
    """Return a header of version 2; without a *client* that of a proxy's own connection, or of an unknown one."""
    family, body = 0, b""
    if client is not None:
        source = ipaddress.ip_address(client[0])
        target, port = server or ("192.0.2.1" if source.version == 4 else "2001:db8::1", 8883)
        family = (0x10 if source.version == 4 else 0x20) | STREAM
        body = source.packed + ipaddress.ip_address(target).packed + struct.pack("!HH", client[1], port)
    for kind, value in fields:
        body += struct.pack("!BH", kind, len(value)) + value
    return SIGNATURE + struct.pack("!BBH", command, family, len(body)) + body


LOCAL = block(None, command=0x20)
UNKNOWN = b"PROXY UNKNOWN\r\n"
