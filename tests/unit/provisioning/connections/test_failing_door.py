"""An error that nobody has expected, before a connection's handshake: whose it is, and what becomes of the place."""

from __future__ import annotations

import asyncio
import socket
import ssl
from typing import cast

import pytest
from structlog.testing import capture_logs

from provisioning.connections.door import Door
from provisioning.connections.places import Place, Places
from provisioning.pki.tls import ClientCertificate, client_context, server_context
from provisioning.program.proxy_header import Address
from tests.support.pki import shared_pki

PATIENCE = 20


class Greeting(asyncio.Protocol):
    """Greets whoever comes, gives the place back when he has gone, and says that it is over."""

    def __init__(self, place: Place, over: asyncio.Event) -> None:
        self._place = place
        self._over = over

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        cast("asyncio.Transport", transport).write(b"come in")

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        self._place.leave()
        self._over.set()


@pytest.mark.parametrize("part", ["context", "protocol"])
async def test_an_error_before_the_handshake_is_one_connection_s(part: str) -> None:
    """The place of a connection without a context was taken for ever, and nobody was told."""
    tls = server_context(
        shared_pki().broker().credential, shared_pki().anchors, client_certificate=ClientCertificate.OPTIONAL
    )
    broken = True
    over: list[asyncio.Event] = []

    def context() -> ssl.SSLContext:
        if broken and part == "context":
            raise KeyError(part)
        return tls

    def make(place: Place, client: Address | None) -> asyncio.Protocol:
        if broken and part == "protocol":
            raise KeyError(part)
        del client
        over.append(asyncio.Event())
        return Greeting(place, over[-1])

    places, listening = Places(2), socket.create_server(("127.0.0.1", 0))
    door = Door(listening, context, make, places)
    door.open()
    try:
        with capture_logs() as logs:
            reader, writer = await asyncio.open_connection(*listening.getsockname())
            assert await asyncio.wait_for(reader.read(), PATIENCE) == b""
            writer.close()
        await writer.wait_closed()
        assert [(each["code"], type(each["exc_info"])) for each in logs] == [("INTERNAL_ERROR", KeyError)]
        assert (len(places), over) == (0, [])
        broken = False
        trusting = client_context(shared_pki().anchors)
        reader, writer = await asyncio.open_connection(
            *listening.getsockname(), ssl=trusting, server_hostname="localhost"
        )
        assert await asyncio.wait_for(reader.readexactly(7), PATIENCE) == b"come in"
        writer.close()
        await writer.wait_closed()
        await asyncio.wait_for(over[0].wait(), PATIENCE)
        assert len(places) == 0
    finally:
        door.close()
        await door.closed()
        listening.close()
