"""The broker behind a bad network: `device_sim.trouble` between it and its devices."""

from __future__ import annotations

import asyncio
import socket
import ssl
from pathlib import Path

import pytest

from broker.mqtt.codes import QoS
from broker.mqtt.connect import Connect, Will
from broker.mqtt.packets import Pingreq, Pingresp, Puback, Publish, Suback, Subscribe, SubscriptionRequest
from device_sim.attack.raw_client import RawClient
from device_sim.link.tls_dial import Endpoint
from device_sim.trouble.proxy import Proxy
from device_sim.trouble.trouble import NONE, Direction, Trouble
from provisioning.pki.tls import client_context
from tests.support.broker_process import PATIENCE, BrokerProcess, wait_until
from tests.support.pki import Held, Pki

FED = 32 * 1024 * 1024
PACKET = 16 * 1024


async def admitted(port: int, anchors: Path, held: Held, connect: Connect) -> RawClient:
    context = client_context(anchors, held.credential)
    client = await RawClient.dial(Endpoint("127.0.0.1", port, "localhost"), context, deadline=PATIENCE)
    seen = await client.connect(connect, PATIENCE)
    assert seen.got_in, seen
    return client


def read_all(connected: socket.socket) -> None:
    while connected.recv(65536):
        pass


async def subscribed(client: RawClient, topic_filter: str) -> None:
    request = Subscribe(1, (SubscriptionRequest(topic_filter, QoS.AT_MOST_ONCE),))
    await client.send(request.encode(client.version))
    assert (await client.answer(Suback, deadline=PATIENCE)).got_in


async def test_a_half_open_connection_ends_by_its_keep_alive_and_the_will_is_sent(
    broker: BrokerProcess, anchors: Path, pki: Pki, meter: Held, name: str
) -> None:
    async with Proxy("127.0.0.1", broker.port) as proxy:
        watcher = await admitted(broker.port, anchors, pki.service(f"w-{name}"), Connect(f"w-{name}", keep_alive=600))
        await subscribed(watcher, f"fleet/meters/{name}/state")
        will = Will(f"fleet/meters/{name}/state", b"lost")
        device = await admitted(proxy.port, anchors, meter, Connect(name, keep_alive=1, will=will))
        proxy.set(Trouble(half_open=True))
        assert proxy.orphans == 1
        told = await watcher.receive(PATIENCE)
        assert isinstance(told, Publish)
        assert told.payload == b"lost"
        async with asyncio.timeout(PATIENCE):
            while proxy.orphans:
                await asyncio.sleep(0.01)
        for client in (device, watcher):
            client.close()
    assert broker.events("KEEP_ALIVE_TIMEOUT", identity=f"spiffe://fleet.internal/device/meters/{name}")


async def test_a_subscriber_in_a_blackhole_costs_the_broker_no_memory(tmp_path: Path, anchors: Path, pki: Pki) -> None:
    running = BrokerProcess.with_files(tmp_path / "own", pki, limits__max_backlog=1024 * 1024).afresh()
    with running as broker:
        async with Proxy("127.0.0.1", broker.port) as proxy:
            slow = await admitted(proxy.port, anchors, pki.device("slow"), Connect("slow", keep_alive=600))
            await subscribed(slow, "fleet/meters/slow/cmd/#")
            sender = await admitted(broker.port, anchors, pki.service("sender"), Connect("sender", keep_alive=600))
            packet = Publish("fleet/meters/slow/cmd/firmware", bytes(PACKET)).encode(sender.version)
            await sender.send(packet, PATIENCE)
            assert isinstance(await slow.receive(PATIENCE), Publish)
            before = broker.resident_kib()
            proxy.set(Trouble(blackhole=True, direction=Direction.TO_DEVICE))
            for _ in range(FED // PACKET // 16):
                assert await sender.send(packet * 16, PATIENCE)
            await sender.send(Pingreq().encode(sender.version))
            assert isinstance(await sender.receive(PATIENCE), Pingresp)
            grown = broker.resident_kib() - before
            assert grown < 12 * 1024, f"{FED >> 20} MiB to a device in a blackhole cost {grown} KiB"
            for client in (slow, sender):
                client.abort()


async def test_who_does_not_get_the_brokers_hello_is_told_the_end_nevertheless(
    tmp_path: Path, anchors: Path, pki: Pki
) -> None:
    """As where large packets vanish: the end of the stream waits behind them, and the client for it, for ever."""
    running = BrokerProcess.with_files(tmp_path / "own", pki, limits__handshake_timeout=1).afresh()
    with running as broker, socket.socket() as raw:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)  # The kernel's least: it has not room for all.
        raw.settimeout(PATIENCE)
        raw.connect(("127.0.0.1", broker.port))
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = client_context(anchors, pki.device("far").credential).wrap_bio(
            incoming, outgoing, server_hostname="localhost"
        )
        with pytest.raises(ssl.SSLWantReadError):
            tls.do_handshake()
        raw.sendall(outgoing.read())
        wait_until(lambda: broker.events("HANDSHAKE_TIMEOUT"), "the broker gives up")
        with pytest.raises(ConnectionResetError):
            read_all(raw)


@pytest.mark.parametrize(
    "trouble",
    [Trouble(slice_bytes=1), Trouble(latency=0.05, jitter=0.05), Trouble(bandwidth=20_000)],
    ids=["every byte by itself", "late", "slow"],
)
async def test_a_device_is_served_through_a_bad_network(
    broker: BrokerProcess, anchors: Path, meter: Held, name: str, trouble: Trouble
) -> None:
    async with Proxy("127.0.0.1", broker.port) as proxy:
        proxy.set(trouble)
        device = await admitted(proxy.port, anchors, meter, Connect(name, keep_alive=60))
        publish = Publish(f"fleet/meters/{name}/telemetry", bytes(2000), QoS.AT_LEAST_ONCE, packet_id=1)
        await device.send(publish.encode(device.version))
        assert (await device.answer(Puback, deadline=PATIENCE)).got_in
        proxy.set(NONE)
        device.close()
