"""Connections that wait for their handshake to begin: who comes first, and who is let go."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from pathlib import Path

from structlog.testing import capture_logs

from provisioning.connections.door import Door
from provisioning.connections.places import Place, Places
from provisioning.pki.tls import ClientCertificate, server_context
from provisioning.program.proxy_header import Address
from tests.support.pki import shared_pki

PATIENCE = 20


class Served(asyncio.Protocol):
    """Who comes through his handshake, which nobody does here."""

    def __init__(self, place: Place, client: Address | None) -> None:
        del place, client


async def test_where_an_operator_was_answered_is_before_others_and_these_by_address() -> None:
    """A thousand connections of one host kept an operator waiting for seven seconds, four thousand kept him out."""
    pki, places, begun = shared_pki(), Places(100), list[bytes]()
    context = server_context(pki.broker().credential, pki.anchors, client_certificate=ClientCertificate.OPTIONAL)
    places.known.add(b"127.0.0.4", "anna")

    class Noted(Served):
        def __init__(self, place: Place, client: Address | None) -> None:
            begun.append(place._keys[0])
            super().__init__(place, client)

    with socket.create_server(("127.0.0.1", 0)) as listening, contextlib.ExitStack() as opened:
        for host in (*12 * [2], 3, 4, 5, 5):
            opened.enter_context(socket.create_connection(listening.getsockname(), PATIENCE, (f"127.0.0.{host}", 0)))
        left = opened.enter_context(socket.create_connection(listening.getsockname(), PATIENCE, ("127.0.0.6", 0)))
        left.close()  # It costs nothing but a place, and that for a moment.
        door = Door(listening, lambda: context, Noted, places)
        door.open()
        async with asyncio.timeout(PATIENCE):
            while len(begun) < 16:
                await asyncio.sleep(0)
        assert [int(key[-1:]) for key in begun] == [4, 2, 3, 5, 2, 5, *10 * [2]]
        assert len(places) == 16
        door.close()
        await door.closed()
        assert len(places) == 0


def descriptors() -> int:
    return sum(1 for _ in Path("/dev/fd").iterdir())


async def test_who_is_cut_off_before_his_handshake_begins_costs_no_descriptor() -> None:
    pki, places, line = shared_pki(), Places(50), Places(4)
    context = server_context(pki.broker().credential, pki.anchors, client_certificate=ClientCertificate.OPTIONAL)
    with socket.create_server(("127.0.0.1", 0)) as listening, contextlib.ExitStack() as opened:
        for host in range(2, 22):
            opened.enter_context(socket.create_connection(listening.getsockname(), PATIENCE, (f"127.0.{host}.7", 0)))
        door = Door(listening, lambda: context, Served, places, line=line)
        door.open()
        before = descriptors()
        with capture_logs() as logs:
            door._accept()
        assert (len(line), len(places), len(door._next), descriptors()) == (4, 0, 4, before + 4)
        assert [(each["code"], each["connections"]) for each in logs] == [("CROWDED", 4)]
        async with asyncio.timeout(PATIENCE):
            while len(places) < 4:
                await asyncio.sleep(0)
        assert len(line) == 0
        door.close()
        await door.closed()
        assert len(places) == 0
