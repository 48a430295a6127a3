"""Both clients on one loop, against a broker that nobody here wrote: the same observations."""

from __future__ import annotations

import asyncio
import socket
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from broker.mqtt.codes import ProtocolVersion, QoS
from broker.mqtt.connect import Will
from device_sim.link.closure import Layer, Verdict
from device_sim.link.driver import Driver
from device_sim.link.keep_alive import KeepAlive
from device_sim.link.link import NotConnected, Terms
from device_sim.link.tls_dial import Endpoint, NotAdmitted
from provisioning.pki.tls import client_context
from tests.support.authority import Authority

if TYPE_CHECKING:
    from tests.integration.device_sim.conftest import RunningBroker


@pytest.fixture(params=Driver)
def driver(request: pytest.FixtureRequest) -> Driver:
    assert isinstance(request.param, Driver)
    return request.param


@pytest.fixture(params=["mqtts", "wss"])
def endpoint(request: pytest.FixtureRequest, mosquitto: RunningBroker) -> Endpoint:
    return mosquitto.websocket if request.param == "wss" else mosquitto.endpoint


@pytest.mark.parametrize("qos", [QoS.AT_LEAST_ONCE, QoS.EXACTLY_ONCE])
@pytest.mark.parametrize("version", [ProtocolVersion.V5, ProtocolVersion.V311])
async def test_messages_arrive_once_and_in_order(
    endpoint: Endpoint, authority: Authority, driver: Driver, version: ProtocolVersion, qos: QoS
) -> None:
    received: list[tuple[str, bytes]] = []
    acknowledged: list[tuple[int, int]] = []
    context = authority.issue("meter-1").context(authority.pem)
    everything = asyncio.Event()

    def complete() -> None:
        if len(received) == len(acknowledged) == 60:
            everything.set()

    def receive(topic: str, payload: bytes) -> None:
        received.append((topic, payload))
        complete()

    def acknowledge(packet_id: int, number: int, _reason: str) -> None:
        acknowledged.append((packet_id, number))
        complete()

    async with KeepAlive() as keep_alive:
        connection = await driver.open(
            endpoint,
            context,
            "meter-1",
            keep_alive=keep_alive,
            terms=Terms(version=version),
            received=receive,
            acknowledged=acknowledge,
        )
        assert await connection.subscribe("fleet/#", qos) == qos
        sent = [connection.publish("fleet/meters/meter-1/telemetry", b"%d" % n, qos) for n in range(60)]
        await asyncio.wait_for(everything.wait(), 60)
        closure = await connection.close()
    assert [payload for _, payload in received] == [b"%d" % n for n in range(60)]
    assert acknowledged == [(packet_id, 0) for packet_id in sent]
    assert closure.number == 0
    assert (connection.stage_times.upgrade > 0) is endpoint.websocket


async def test_a_large_message_is_read_whole(endpoint: Endpoint, authority: Authority, driver: Driver) -> None:
    payload = bytes(range(256)) * 1200  # Above the output limit of the buffered socket, and many TLS records.
    arrived: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
    async with KeepAlive() as keep_alive:
        connection = await driver.open(
            endpoint,
            authority.issue("meter-1").context(authority.pem),
            "meter-1",
            keep_alive=keep_alive,
            received=lambda _, body: arrived.set_result(body),
        )
        await connection.subscribe("big", 1)
        connection.publish("big", payload, 1)
        assert await asyncio.wait_for(arrived, 60) == payload
        await connection.close()


async def test_no_certificate_is_the_true_alert(endpoint: Endpoint, authority: Authority, driver: Driver) -> None:
    async with KeepAlive() as keep_alive:
        with pytest.raises(NotAdmitted) as refused:
            await driver.open(endpoint, client_context(authority.pem), "x", keep_alive=keep_alive)
    assert refused.value.closure.layer is Layer.TLS
    assert refused.value.closure.code == "certificate_required"
    assert refused.value.closure.verdict is Verdict.FINAL


async def test_an_expired_certificate_is_the_true_alert(
    mosquitto: RunningBroker, authority: Authority, driver: Driver
) -> None:
    expired = authority.issue("meter-1", life=timedelta(seconds=-1))
    async with KeepAlive() as keep_alive:
        with pytest.raises(NotAdmitted) as refused:
            await driver.open(mosquitto.endpoint, expired.context(authority.pem), "x", keep_alive=keep_alive)
    assert refused.value.closure.code == "certificate_expired"


async def test_a_server_with_another_name_is_refused_by_us(
    mosquitto: RunningBroker, authority: Authority, driver: Driver
) -> None:
    endpoint = Endpoint("127.0.0.1", mosquitto.endpoint.port, "elsewhere.example")
    context = authority.issue("meter-1").context(authority.pem)
    async with KeepAlive() as keep_alive:
        with pytest.raises(NotAdmitted, match="server_certificate"):
            await driver.open(endpoint, context, "x", keep_alive=keep_alive)


async def test_nobody_listens(authority: Authority, driver: Driver) -> None:
    server = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    server.close()
    await server.wait_closed()
    async with KeepAlive() as keep_alive:
        with pytest.raises(NotAdmitted, match="tcp"):
            await driver.open(
                Endpoint("127.0.0.1", port, "localhost"),
                authority.issue("meter-1").context(authority.pem),
                "x",
                keep_alive=keep_alive,
            )


async def test_a_silent_server_is_given_up_at_the_deadline(authority: Authority, driver: Driver) -> None:
    # The kernel accepts the connection; nobody ever answers it.
    with socket.create_server(("127.0.0.1", 0)) as server:
        async with KeepAlive() as keep_alive:
            with pytest.raises(NotAdmitted) as refused:
                await driver.open(
                    Endpoint("127.0.0.1", server.getsockname()[1], "localhost"),
                    authority.issue("meter-1").context(authority.pem),
                    "x",
                    keep_alive=keep_alive,
                    deadline=0.3,
                )
    assert refused.value.closure.code == "timeout"


async def test_takeover_ends_the_older_connection_with_its_reason(
    endpoint: Endpoint, authority: Authority, driver: Driver
) -> None:
    context = authority.issue("meter-1").context(authority.pem)
    async with KeepAlive() as keep_alive:
        older = await driver.open(endpoint, context, "meter-1", keep_alive=keep_alive)
        newer = await driver.open(endpoint, context, "meter-1", keep_alive=keep_alive)
        closure = await asyncio.wait_for(older.closed, 60)
        assert (closure.layer, closure.number) == (Layer.MQTT, 0x8E)
        with pytest.raises(NotConnected, match="0x8e"):
            older.publish("t", b"", 0)
        await newer.close()


async def test_a_broker_that_dies_closes_every_connection(
    mosquitto: RunningBroker, endpoint: Endpoint, authority: Authority, driver: Driver
) -> None:
    async with KeepAlive() as keep_alive:
        connection = await driver.open(
            endpoint, authority.issue("meter-1").context(authority.pem), "meter-1", keep_alive=keep_alive
        )
        mosquitto.process.kill()
        closure = await asyncio.wait_for(connection.closed, 60)
    assert closure.layer is Layer.TCP
    assert closure.verdict is Verdict.AGAIN


async def test_the_keep_alive_pings_an_idle_connection(
    mosquitto: RunningBroker, authority: Authority, driver: Driver
) -> None:
    async with KeepAlive(period=0.2) as keep_alive:
        connection = await driver.open(
            mosquitto.endpoint,
            authority.issue("meter-1").context(authority.pem),
            "meter-1",
            keep_alive=keep_alive,
            terms=Terms(seconds_alive=2),  # A busy machine may well hold a ping up for a second and more.
        )
        # mosquitto closes a connection that is silent for one and a half keep alives.
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.shield(connection.closed), 4)
        await connection.close()


async def test_a_tls_session_is_resumed(mosquitto: RunningBroker, authority: Authority, driver: Driver) -> None:
    context = authority.issue("meter-1").context(authority.pem)
    async with KeepAlive() as keep_alive:
        usual = await driver.open(mosquitto.endpoint, context, "meter-1", keep_alive=keep_alive)
        await usual.close()
        assert usual.tls_session is None, "not asked for: with CPython 3.11 each would stay in memory for ever"
        first = await driver.open(mosquitto.endpoint, context, "meter-1", keep_alive=keep_alive)
        first.keeps_tls_session = True
        assert not first.tls_resumed
        await first.close()
        second = await driver.open(
            mosquitto.endpoint, context, "meter-1", keep_alive=keep_alive, session=first.tls_session
        )
        assert second.tls_resumed
        await second.close()


async def test_the_will_of_a_broken_connection_is_published(
    endpoint: Endpoint, authority: Authority, driver: Driver
) -> None:
    told: asyncio.Future[tuple[str, bytes]] = asyncio.get_running_loop().create_future()
    will = Will("fleet/meters/meter-1/state", b"gone", QoS.AT_LEAST_ONCE)
    async with KeepAlive() as keep_alive:
        watcher = await driver.open(
            endpoint,
            authority.issue("watcher").context(authority.pem),
            "watcher",
            keep_alive=keep_alive,
            received=lambda topic, body: told.set_result((topic, body)),
        )
        await watcher.subscribe("fleet/+/+/state", 1)
        device = await driver.open(
            endpoint,
            authority.issue("meter-1").context(authority.pem),
            "meter-1",
            keep_alive=keep_alive,
            terms=Terms(will=will),
        )
        device.abort()
        assert (await device.closed).layer is Layer.TCP
        assert await asyncio.wait_for(told, 60) == ("fleet/meters/meter-1/state", b"gone")
        await watcher.close()


@pytest.mark.parametrize("version", [ProtocolVersion.V5, ProtocolVersion.V311])
async def test_a_kept_session_holds_what_came_meanwhile(
    mosquitto: RunningBroker, authority: Authority, driver: Driver, version: ProtocolVersion
) -> None:
    context = authority.issue("meter-1").context(authority.pem)
    terms = Terms(clean_start=False, session_seconds=60, version=version)
    received: asyncio.Queue[bytes] = asyncio.Queue()
    async with KeepAlive() as keep_alive:
        first = await driver.open(mosquitto.endpoint, context, "meter-1", keep_alive=keep_alive, terms=terms)
        assert not first.session_present
        await first.subscribe("cmd", 1)
        await first.close()
        acknowledged = asyncio.Event()
        other = await driver.open(
            mosquitto.endpoint,
            authority.issue("other").context(authority.pem),
            "other",
            keep_alive=keep_alive,
            acknowledged=lambda *_: acknowledged.set(),
        )
        other.publish("cmd", b"meanwhile", 1)
        await asyncio.wait_for(acknowledged.wait(), 60)
        again = await driver.open(
            mosquitto.endpoint,
            context,
            "meter-1",
            keep_alive=keep_alive,
            terms=terms,
            received=lambda _, body: received.put_nowait(body),
        )
        assert again.session_present
        assert await asyncio.wait_for(received.get(), 60) == b"meanwhile"
        await again.close()
        await other.close()


async def test_a_slow_reader_gets_everything_when_it_reads_on(
    mosquitto: RunningBroker, authority: Authority, driver: Driver
) -> None:
    received: list[bytes] = []
    acknowledged = asyncio.Event()
    arrived = asyncio.Event()

    def receive(_topic: str, body: bytes) -> None:
        received.append(body)
        arrived.set()

    async with KeepAlive() as keep_alive:
        slow = await driver.open(
            mosquitto.endpoint,
            authority.issue("slow").context(authority.pem),
            "slow",
            keep_alive=keep_alive,
            received=receive,
        )
        await slow.subscribe("t", 1)
        slow.read_on(False)
        other = await driver.open(
            mosquitto.endpoint,
            authority.issue("other").context(authority.pem),
            "other",
            keep_alive=keep_alive,
            acknowledged=lambda *_: acknowledged.set(),
        )
        other.publish("t", b"1", 1)
        await asyncio.wait_for(acknowledged.wait(), 60)
        # The broker has sent it; that it is not read is no matter of time.
        assert not received
        slow.read_on(True)
        await asyncio.wait_for(arrived.wait(), 60)
        assert received == [b"1"]
        await slow.close()
        await other.close()
