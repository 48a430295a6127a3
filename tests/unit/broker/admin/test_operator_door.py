"""The admin port on asyncio's own loop, which reads what came behind the handshake before it begins a task."""

from __future__ import annotations

import asyncio

import pytest
from structlog.testing import capture_logs

from broker.admin.http_server import HttpServer, Request, Response
from broker.admin.operator_door import OperatorDoor, Operators
from provisioning.pki import openssl
from provisioning.pki.tls import ClientCertificate, client_context, server_context
from tests.support.one_segment import OneSegmentClient
from tests.support.pki import shared_pki
from tests.support.wire import MemoryBroker


async def test_changes_of_keys_that_come_in_one_piece_with_the_handshake_are_bounded_too() -> None:
    if not openssl.AVAILABLE:
        pytest.skip("of such messages only OpenSSL itself could tell")

    async def handle(_request: Request) -> Response:
        return Response.json({})

    pki, operators = shared_pki(), Operators(MemoryBroker().engine)
    context = server_context(pki.broker().credential, pki.anchors, client_certificate=ClientCertificate.REQUIRED)
    device = client_context(pki.anchors, pki.device("meter-1").credential)
    door = OperatorDoor(HttpServer(handle, operators.identify), operators, lambda: context)
    door.open("127.0.0.1", 0)
    port = int(door.url.rpartition(":")[2])

    def answer(key_changes: int) -> bytes:
        request = b"GET /v1/status HTTP/1.1\r\nHost: x\r\n\r\n"
        with OneSegmentClient(port, device, [request], key_changes=key_changes) as client:
            return client.receive(13)

    try:
        assert await asyncio.to_thread(answer, 10) == b"HTTP/1.1 403 "
        with pytest.raises(ConnectionError):
            await asyncio.to_thread(answer, 1000)
    finally:
        await door.close()


def test_that_somebody_lost_a_place_is_said_once_a_minute_and_only_of_somebody_more() -> None:
    operators = Operators(MemoryBroker().engine)
    door = OperatorDoor(HttpServer(None, operators.identify), operators, None)  # type: ignore[arg-type]
    said = []
    for now, lost, turned_away in ((0, 0, 0), (1, 1, 0), (2, 1, 0), (60, 1, 1), (61, 1, 1), (200, 1, 1), (201, 2, 1)):
        door._places.lost, door._places.turned_away = lost, turned_away
        with capture_logs() as logs:
            door._tell("192.0.2.1", now)
        said += [(now, each["code"], each["address"], each["lost"], each["turned_away"]) for each in logs]
    assert said == [(now, "CROWDED", "192.0.2.1", *others) for now, *others in ((1, 1, 0), (61, 1, 1), (201, 2, 1))]
