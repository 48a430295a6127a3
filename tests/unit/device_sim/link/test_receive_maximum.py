"""A device keeps to its broker's Receive Maximum, with either client: else it is put out, and the broker blamed."""

from __future__ import annotations

import asyncio

import pytest

from broker.mqtt.codes import ProtocolVersion
from broker.mqtt.connect import Connack
from broker.mqtt.framing import split_frames
from broker.mqtt.packets import Puback, Publish, decode_packet
from broker.mqtt.properties import Properties
from device_sim.link.driver import Driver
from device_sim.link.keep_alive import KeepAlive
from device_sim.link.tls_dial import Endpoint
from provisioning.pki.role import Role
from provisioning.pki.tls import ClientCertificate, client_context, server_context
from tests.support.authority import Authority

V5 = ProtocolVersion.V5
MOST, MESSAGES = 3, 8


@pytest.mark.parametrize("driver", Driver)
async def test_no_more_is_under_way_than_the_broker_takes(driver: Driver) -> None:
    authority, under_way, most, came = Authority(), 0, 0, 0
    full, all_came = asyncio.Event(), asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal under_way, most, came
        await reader.read(1000)
        writer.write(Connack(properties=Properties(receive_maximum=MOST)).encode(V5))
        rest = b""
        while data := await reader.read(1000):
            frames, used = split_frames(rest + data, 1000)
            packets = [decode_packet(first, (rest + data)[start:end], V5) for first, start, end in frames]
            rest = (rest + data)[used:]
            identifiers = [each.packet_id for each in packets if isinstance(each, Publish)]
            under_way += len(identifiers)
            came += len(identifiers)
            most = max(most, under_way)
            if under_way >= MOST:
                full.set()
            await asyncio.sleep(0.01)  # More would come meanwhile.
            for identifier in identifiers:
                under_way -= 1
                writer.write(Puback(identifier or 0).encode(V5))
            if came == MESSAGES:
                all_came.set()
        writer.close()

    server = authority.issue("broker-1", role=Role.BROKER, group=None)
    context = server_context(server.pem, authority.pem, client_certificate=ClientCertificate.REQUIRED)
    driver.load()
    async with (
        await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context) as listener,
        KeepAlive() as keep_alive,
        asyncio.timeout(60),
    ):
        endpoint = Endpoint("127.0.0.1", listener.sockets[0].getsockname()[1], "localhost")
        device = client_context(authority.pem, authority.issue("meter-1").pem)
        link = await driver.open(endpoint, device, "meter-1", keep_alive=keep_alive)
        for _ in range(MESSAGES):
            link.publish("fleet/meters/meter-1/telemetry", b"1", 1)
        await full.wait()
        await all_came.wait()
        await link.close()
    assert most == MOST
