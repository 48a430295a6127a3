"""The stand misbehaves as its conduct says, so often and no more: else a device is judged by what never happened."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import socket
import ssl
from collections.abc import Callable
from pathlib import Path

import pytest

from broker.mqtt.codes import ProtocolVersion, QoS, ReasonCode
from broker.mqtt.connect import Connack, Connect
from broker.mqtt.packets import (
    Disconnect,
    Packet,
    Puback,
    Pubcomp,
    Publish,
    Pubrec,
    Pubrel,
    Suback,
    Subscribe,
    SubscriptionRequest,
)
from broker.mqtt.properties import Properties
from device_sim.attack.raw_client import RawClient, reset
from device_sim.attack.verdict import Seen
from device_sim.link.tls_dial import NotAdmitted
from device_sim.qualify import stand as stands
from device_sim.qualify.conduct import Conduct, Step
from device_sim.qualify.papers import Papers
from device_sim.qualify.stand import Stand
from device_sim.qualify.subscription_judging import filters_of
from tests.support.stand_clients import dialled

V5, V311 = ProtocolVersion.V5, ProtocolVersion.V311
PAPERS = Papers("meter-1", ["localhost", "127.0.0.1"])
PATIENCE = 60.0
TOPIC = "fleet/meters/meter-1/telemetry"


@pytest.fixture
def files(tmp_path: Path) -> Path:
    PAPERS.write(tmp_path)
    return tmp_path


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stands, "_UNACKNOWLEDGED", 0.05)


async def connected(stand: Stand, files: Path, version: ProtocolVersion = V5, keep_alive: int = 60) -> RawClient:
    client = await dialled(stand, files, version)
    answer = await client.connect(Connect("meter-1", protocol_version=version, keep_alive=keep_alive))
    assert answer.got_in, answer
    return client


async def asked(client: RawClient, packet: Packet) -> Packet | Seen:
    """Return what *packet* is answered with, or the end."""
    await client.send(packet.encode(client.version))
    return await client.receive(PATIENCE)


async def ended(client: RawClient) -> bool:
    """Whether the connection ends next."""
    seen = await client.receive(PATIENCE)
    client.close()
    return isinstance(seen, Seen) and not seen.got_in


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not true():
            await asyncio.sleep(0.01)


def said(qos: QoS = QoS.AT_LEAST_ONCE) -> Publish:
    return Publish(TOPIC, b"42", qos, packet_id=7 if qos else None)


async def test_the_first_message_is_not_acknowledged_and_the_next_ones_are(files: Path) -> None:
    async with Stand(PAPERS, Conduct(first_puback=False), "127.0.0.1", 0) as stand:
        client = await connected(stand, files)
        # What needs no acknowledgement misses none, and has not come at all before it.
        assert isinstance(await asked(client, Subscribe(1, (SubscriptionRequest("a", QoS.AT_MOST_ONCE),))), Suback)
        assert isinstance(await asked(client, said()), Seen)
        client.close()
        assert not stand.attempts[0].by_device
        for qos, kind in ((QoS.AT_LEAST_ONCE, Puback), (QoS.EXACTLY_ONCE, Pubrec)):
            client = await connected(stand, files)
            assert isinstance(await asked(client, said(qos)), kind)
            client.close()
        await until(lambda: all(each.ended is not None for each in stand.attempts))
        assert stand.attempts[1].by_device


async def test_a_message_that_needs_no_acknowledgement_ends_nothing(files: Path) -> None:
    async with Stand(PAPERS, Conduct(first_puback=False), "127.0.0.1", 0) as stand:
        client = await connected(stand, files)
        await client.send(said(QoS.AT_MOST_ONCE).encode(V5))
        assert isinstance(await asked(client, Subscribe(1, (SubscriptionRequest("a", QoS.AT_MOST_ONCE),))), Suback)
        client.close()


async def test_the_first_release_is_not_answered_and_the_next_one_is(files: Path) -> None:
    async with Stand(PAPERS, Conduct(first_pubcomp=False), "127.0.0.1", 0) as stand:
        client = await connected(stand, files)
        assert isinstance(await asked(client, said(QoS.EXACTLY_ONCE)), Pubrec)
        await client.send(Pubrel(7).encode(V5))
        assert await ended(client)
        assert not stand.attempts[0].by_device
        client = await connected(stand, files)
        assert isinstance(await asked(client, Pubrel(7)), Pubcomp)
        client.close()


async def test_who_acknowledges_nothing_answers_everything_else(files: Path) -> None:
    async with Stand(PAPERS, Conduct(acknowledges=False), "127.0.0.1", 0) as stand:
        client = await connected(stand, files)
        await client.send(said().encode(V5) + said(QoS.EXACTLY_ONCE).encode(V5))
        assert isinstance(await asked(client, Subscribe(1, (SubscriptionRequest("a", QoS.AT_MOST_ONCE),))), Suback)
        client.close()


async def test_the_first_subscribe_is_not_answered_and_the_next_one_is(files: Path) -> None:
    async with Stand(PAPERS, Conduct(first_suback=False), "127.0.0.1", 0) as stand:
        client = await connected(stand, files)
        assert isinstance(await asked(client, said()), Puback)
        both = [Subscribe(number, (SubscriptionRequest(f"a/{number}", QoS.AT_MOST_ONCE),)) for number in (1, 2)]
        await client.send(b"".join(each.encode(client.version) for each in both))
        assert isinstance(await client.receive(PATIENCE), Seen)
        client.close()
        assert not stand.attempts[0].by_device
        assert filters_of(stand.attempts) == {"a/1", "a/2"}, "it was read to its end"
        client = await connected(stand, files)
        assert isinstance(await asked(client, Subscribe(1, (SubscriptionRequest("a", QoS.AT_MOST_ONCE),))), Suback)
        client.close()


async def test_a_stand_that_forgets_answers_breaks_once_and_has_no_session(files: Path) -> None:
    kept = Connect("meter-1", clean_start=False, properties=Properties(session_expiry_interval=600))
    async with Stand(PAPERS, Conduct(forgets=True), "127.0.0.1", 0) as stand:
        other = await connected(stand, files)
        for number in range(2):
            client = await dialled(stand, files, V5)
            connack = await asked(client, kept)
            assert isinstance(connack, Connack)
            assert (connack.reason_code, connack.session_present) == (ReasonCode.SUCCESS, False)
            assert isinstance(await asked(client, Subscribe(1, (SubscriptionRequest("a", QoS.AT_MOST_ONCE),))), Suback)
            if not number:
                assert await ended(client)
                assert not stand.attempts[1].by_device
        for each in (client, other):
            assert isinstance(await asked(each, said()), Puback)
            each.close()


@pytest.mark.parametrize("version", [V5, V311])
async def test_each_goodbye_is_said_in_its_turn_where_it_can_be_said(files: Path, version: ProtocolVersion) -> None:
    codes = (ReasonCode.SERVER_BUSY, ReasonCode.SERVER_SHUTTING_DOWN)
    async with Stand(PAPERS, Conduct(goodbye=codes), "127.0.0.1", 0) as stand:
        for code in (*codes, codes[0]):
            client = await connected(stand, files, version)
            if version is V5:
                farewell = await asked(client, said())
                assert isinstance(farewell, Disconnect)
                assert farewell.reason_code is code
            else:
                await client.send(said().encode(version))
            seen = await client.receive(PATIENCE)
            assert isinstance(seen, Seen)
            # Not by a reset: what was said last must arrive.
            assert seen.text == "mqtt closed"
            client.close()
        assert not any(each.by_device for each in stand.attempts)


async def test_each_refusal_is_said_in_its_turn(files: Path) -> None:
    codes = (ReasonCode.SERVER_BUSY, ReasonCode.NOT_AUTHORIZED)
    async with Stand(PAPERS, Conduct(connack=codes), "127.0.0.1", 0) as stand:
        for code in (*codes, codes[0]):
            client = await dialled(stand, files)
            answer = await client.connect(Connect("meter-1"))
            assert answer.text == f"mqtt CONNACK 0x{code:02x}"
            client.close()
        assert [each.answered for each in stand.attempts] == [None] * 3


async def test_the_first_connection_may_use_aliases_and_is_dropped_and_the_next_may_not(files: Path) -> None:
    async with Stand(PAPERS, Conduct(aliases=5), "127.0.0.1", 0) as stand:
        client = await connected(stand, files)
        told = client.connack
        assert isinstance(told, Connack)
        assert told.properties.topic_alias_maximum == 5
        # It is dropped after its message, not after its subscription.
        assert isinstance(await asked(client, Subscribe(1, (SubscriptionRequest("a", QoS.AT_MOST_ONCE),))), Suback)
        assert not stand._ending
        assert isinstance(await asked(client, said()), Puback)
        assert await ended(client)
        await until(lambda: stand.attempts[0].ended is not None)
        assert not stand.attempts[0].by_device
        client = await connected(stand, files)
        told = client.connack
        assert isinstance(told, Connack)
        assert told.properties.topic_alias_maximum is None
        assert isinstance(await asked(client, said()), Puback)
        await asyncio.wait_for(_nothing_under_way(stand), PATIENCE)
        assert isinstance(await asked(client, said()), Puback)
        client.close()


async def _nothing_under_way(stand: Stand) -> None:
    """Return when only what accepts and what serves the one connection is left of the stand's tasks."""
    while len(stand._tasks) > 2:
        await asyncio.sleep(0.01)


@pytest.mark.parametrize(("asks", "told"), [(60, 2), (4, 2), (3, 1), (2, 1), (1, 1), (0, 2)])
async def test_a_server_keep_alive_is_half_of_what_is_asked_for_and_two_seconds_at_most(
    files: Path, asks: int, told: int
) -> None:
    """A device that keeps to its own would be late, and one that keeps to this is not."""
    async with Stand(PAPERS, Conduct(server_keep_alive=True), "127.0.0.1", 0) as stand:
        client = await connected(stand, files, keep_alive=asks)
        assert client.connack is not None
        assert client.connack.properties == Properties(server_keep_alive=told)
        client.close()


@pytest.mark.parametrize("step", [Step.TCP, Step.HELLO, Step.TLS, Step.CONNECT, Step.REQUEST])
async def test_what_the_stand_breaks_off_was_not_ended_by_the_device(files: Path, step: Step) -> None:
    """Else a device is judged by how often it leaves."""
    async with Stand(PAPERS, Conduct(drop_at=step), "127.0.0.1", 0) as stand:
        try:
            client = await dialled(stand, files)
        except NotAdmitted:
            assert step in {Step.TCP, Step.HELLO}
        else:
            answer = await client.connect(Connect("meter-1"))
            assert answer.got_in is (step is Step.REQUEST)
            assert isinstance(await asked(client, said()), Seen)
            client.close()
        await until(lambda: bool(stand.attempts) and stand.attempts[0].ended is not None)
        (attempt,) = stand.attempts
        assert not attempt.by_device
        assert (attempt.tls is not None) is (step in {Step.TLS, Step.CONNECT, Step.REQUEST})
        assert (attempt.connect is not None) is (step in {Step.CONNECT, Step.REQUEST})
        assert (attempt.answered is not None) is (step is Step.REQUEST)


async def test_who_says_nothing_from_the_start_keeps_the_connection_until_the_device_leaves() -> None:
    async with Stand(PAPERS, Conduct(silent_at=Step.TCP), "127.0.0.1", 0) as stand:
        reader, writer = await asyncio.open_connection("127.0.0.1", stand.port)
        writer.write(b"\x16\x03\x01 a hello of a kind")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(reader.read(), 0.2)
        (attempt,) = stand.attempts
        assert attempt.ended is None
        writer.close()
        await until(lambda: attempt.ended is not None)
        assert attempt.by_device


async def test_a_device_that_resets_behind_its_hello_has_left(caplog: pytest.LogCaptureFixture) -> None:
    """Nobody is there to shake hands with, and nothing of ours stays open or unsaid."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = ssl.create_default_context().wrap_bio(incoming, outgoing, server_hostname="localhost")
    with contextlib.suppress(ssl.SSLWantReadError):
        tls.do_handshake()
    async with Stand(PAPERS, Conduct(), "127.0.0.1", 0) as stand:
        device = socket.create_connection(("127.0.0.1", stand.port))
        device.sendall(outgoing.read())
        reset(device)
        await until(lambda: bool(stand.attempts) and stand.attempts[0].ended is not None)
        (attempt,) = stand.attempts
    assert (attempt.refusal, attempt.alert, attempt.by_device, attempt.tls) == ("reset", False, True, None)
    gc.collect()
    assert "never retrieved" not in caplog.text


async def test_who_breaks_off_after_connack_has_answered(files: Path) -> None:
    async with Stand(PAPERS, Conduct(drop_at=Step.CONNACK), "127.0.0.1", 0) as stand:
        client = await connected(stand, files)
        assert await ended(client)
        (attempt,) = stand.attempts
        assert attempt.answered is not None
        assert not attempt.by_device


async def test_every_connection_is_broken_at_once_when_the_network_goes(files: Path) -> None:
    async with Stand(PAPERS, Conduct(), "127.0.0.1", 0) as stand:
        clients = [await connected(stand, files) for _ in range(2)]
        stand.drop_all()
        for client in clients:
            assert await ended(client)
        await until(lambda: all(each.ended is not None for each in stand.attempts))
        assert not any(each.by_device for each in stand.attempts)


async def test_what_a_device_does_is_told_to_who_waits_for_it(files: Path) -> None:
    async with Stand(PAPERS, Conduct(), "127.0.0.1", 0) as stand:
        client = await connected(stand, files)
        async with asyncio.timeout(PATIENCE):
            while not any(isinstance(packet, Connect) for _, packet in stand.attempts[0].packets):
                await stand.change()
        stand._changed.clear()
        await client.send(said().encode(V5))
        await asyncio.wait_for(stand.change(), PATIENCE)
        assert stand.attempts[0].packets[-1][1] == said()
        client.close()


async def test_the_stand_leaves_nothing_behind(files: Path) -> None:
    async with Stand(PAPERS, Conduct(), "127.0.0.1", 0) as stand:
        client = await connected(stand, files)
        assert len(stand._tasks) == 2, "what accepts, and what serves"
        (attempt,) = stand.attempts
    assert attempt.ended is not None
    assert not stand._tasks
    assert await ended(client)
