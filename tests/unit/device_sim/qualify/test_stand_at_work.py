"""What the stand does and notes, seen by real clients: a session that is there only if it was kept, commands within a
device's own limits, and whatever a device sends that it should not."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from broker.mqtt.codes import ProtocolVersion, QoS, ReasonCode
from broker.mqtt.connect import Connect
from broker.mqtt.packets import (
    Connack,
    Disconnect,
    Packet,
    Pingreq,
    Pingresp,
    Puback,
    Pubcomp,
    Publish,
    Pubrec,
    Suback,
    Subscribe,
    SubscriptionRequest,
)
from broker.mqtt.properties import Properties
from device_sim.attack.raw_client import RawClient
from device_sim.attack.verdict import Seen, Verdict
from device_sim.link.tls_dial import Endpoint, NotAdmitted
from device_sim.qualify import judging
from device_sim.qualify.attempt import Attempt
from device_sim.qualify.conduct import Conduct, Step
from device_sim.qualify.papers import Papers, ServerPaper
from device_sim.qualify.stand import Stand
from tests.support.stand_clients import dialled

V5, V311 = ProtocolVersion.V5, ProtocolVersion.V311
PAPERS = Papers("meter-1", ["localhost", "127.0.0.1"])
PATIENCE = 60.0


@pytest.fixture
def files(tmp_path: Path) -> Path:
    PAPERS.write(tmp_path)
    return tmp_path


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not true():
            await asyncio.sleep(0.01)


async def connack(client: RawClient, connect: Connect) -> Connack:
    answer = await client.connect(connect)
    assert answer.got_in, answer
    assert client.connack is not None
    return client.connack


async def received(client: RawClient, number: int) -> list[Packet]:
    packets: list[Packet] = []
    while len(packets) < number:
        packet = await client.receive(PATIENCE)
        assert not isinstance(packet, Seen), packet
        packets.append(packet)
    return packets


# A session is there if it was kept


def kept(seconds: int | None = 3600) -> Properties:
    return Properties(session_expiry_interval=seconds)


@pytest.mark.parametrize(
    ("first", "second", "present"),
    [
        (Connect("d", clean_start=False, properties=kept()), Connect("d", clean_start=False, properties=kept()), True),
        (Connect("d", clean_start=True, properties=kept()), Connect("d", clean_start=False), True),
        (Connect("d", clean_start=False, properties=kept()), Connect("d", clean_start=True), False),
        # It ends with the connection [MQTT-3.1.2-23], and a client that has none must leave [MQTT-3.2.2-4].
        (Connect("d", clean_start=False), Connect("d", clean_start=False), False),
        (Connect("d", clean_start=False, properties=kept(0)), Connect("d", clean_start=False), False),
        (Connect("d", clean_start=False, properties=kept()), Connect("other", clean_start=False), False),
        (
            Connect("d", clean_start=False, protocol_version=V311),
            Connect("d", clean_start=False, protocol_version=V311),
            True,
        ),
        (
            Connect("d", clean_start=True, protocol_version=V311),
            Connect("d", clean_start=False, protocol_version=V311),
            False,
        ),
    ],
)
async def test_a_session_is_there_only_if_it_was_kept(
    files: Path, first: Connect, second: Connect, present: bool
) -> None:
    async with Stand(PAPERS, Conduct(), "127.0.0.1", 0) as stand:
        for connect, expected in ((first, False), (second, present)):
            client = await dialled(stand, files)
            assert (await connack(client, connect)).session_present is expected
            client.close()
            await until(lambda: all(each.ended is not None for each in stand.attempts))


async def test_a_session_may_end_later_or_by_the_device_s_last_word(files: Path) -> None:
    asked = Connect("d", clean_start=False, properties=kept(1))
    async with Stand(PAPERS, Conduct(), "127.0.0.1", 0) as stand:
        client = await dialled(stand, files)
        await connack(client, asked)
        client.close()
        await until(lambda: stand.attempts[0].ended is not None)
        stand.attempts[0].ended = time.monotonic() - 1.5
        client = await dialled(stand, files)
        assert not (await connack(client, asked)).session_present, "its second is over"
        await client.send(Disconnect(properties=kept(0)).encode(V5))
        await until(lambda: stand.attempts[1].ended is not None)
        client.close()
        client = await dialled(stand, files)
        assert not (await connack(client, asked)).session_present, "it has said so in DISCONNECT"
        client.close()


async def test_a_session_under_a_name_that_was_assigned_is_there_for_who_gives_that_name(files: Path) -> None:
    async with Stand(PAPERS, Conduct(), "127.0.0.1", 0) as stand:
        client = await dialled(stand, files)
        told = (await connack(client, Connect("", clean_start=True, properties=kept()))).properties
        client.close()
        await until(lambda: stand.attempts[0].ended is not None)
        assert told.assigned_client_identifier
        client = await dialled(stand, files)
        again = Connect(told.assigned_client_identifier, clean_start=False, properties=kept())
        assert (await connack(client, again)).session_present
        client.close()


# Commands


def subscription(number: int, topic_filter: str, qos: QoS = QoS.EXACTLY_ONCE) -> Subscribe:
    return Subscribe(number, (SubscriptionRequest(topic_filter, qos),))


async def commands_of(client: RawClient, subscribes: int) -> list[Publish]:
    """Return the commands that come until the answer to a PINGREQ; there are so many SUBACKs among them."""
    await client.send(Pingreq().encode(client.version))
    packets: list[Packet] = []
    while not packets or not isinstance(packets[-1], Pingresp):
        packets += await received(client, 1)
    assert len([packet for packet in packets if isinstance(packet, Suback)]) == subscribes
    return [packet for packet in packets if isinstance(packet, Publish)]


@pytest.mark.parametrize("version", [V5, V311])
async def test_a_device_that_subscribes_twice_gets_no_identifier_twice(files: Path, version: ProtocolVersion) -> None:
    """[MQTT-2.2.1-4]: one that is under way is not free."""
    async with Stand(PAPERS, Conduct(commands=True), "127.0.0.1", 0) as stand:
        client = await dialled(stand, files, version)
        await connack(client, Connect("d", protocol_version=version))
        for number in (1, 2):
            await client.send(subscription(number, f"cmd/{number}").encode(version))
        came = await commands_of(client, 2)
        client.close()
    identifiers = [each.packet_id for each in came if each.packet_id is not None]
    assert {each.topic for each in came if each.topic} == {"cmd/1", "cmd/2"}
    assert len(identifiers) > 10
    assert len(set(identifiers)) == len(identifiers)


async def test_two_subscriptions_together_get_no_more_than_the_device_takes(files: Path) -> None:
    """Its Receive Maximum is one of the connection, and what it has acknowledged makes room."""
    async with Stand(PAPERS, Conduct(commands=True), "127.0.0.1", 0) as stand:
        client = await dialled(stand, files)
        await connack(client, Connect("d", properties=Properties(receive_maximum=3)))
        for number in (1, 2):
            await client.send(subscription(number, f"cmd/{number}").encode(V5))
        came = [each for each in await commands_of(client, 2) if each.packet_id is not None]
        assert len(came) == 3
        for each in came[:2]:
            assert each.qos is QoS.AT_LEAST_ONCE
            await client.send(Puback(each.packet_id or 0).encode(V5))
        await client.send(subscription(3, "cmd/3").encode(V5))
        assert len([each for each in await commands_of(client, 1) if each.packet_id is not None]) == 2
        client.close()


@pytest.mark.parametrize("limit", [{"maximum_packet_size": 30}, {"receive_maximum": 1}])
async def test_no_alias_comes_without_the_message_that_says_what_it_stands_for(
    files: Path, limit: dict[str, int]
) -> None:
    """A device must end the connection at an alias that it does not know [MQTT-3.3.2-7]."""
    asked = Properties(topic_alias_maximum=4, **limit)  # type: ignore[arg-type]
    async with Stand(PAPERS, Conduct(commands=True), "127.0.0.1", 0) as stand:
        client = await dialled(stand, files)
        await connack(client, Connect("d", properties=asked))
        await client.send(subscription(1, "fleet/north/meter-1/cmd/#").encode(V5))
        came = await commands_of(client, 1)
        client.close()
    known = False
    for each in came:
        known = known or (bool(each.topic) and each.properties.topic_alias is not None)
        assert each.topic or known


# What a device should not send


@pytest.mark.parametrize(
    ("packets", "why"),
    [
        ([Publish("t", b"m", QoS.AT_LEAST_ONCE, packet_id=1)], "PUBLISH before CONNECT"),
        ([Pingreq()], "PINGREQ before CONNECT"),
        ([Connect("d"), Connect("d")], "CONNECT twice"),
        ([Connect("d"), Pingresp()], "PINGRESP, which only a broker sends"),
        ([Connect("d"), Connack(ReasonCode.SUCCESS)], "CONNACK, which only a broker sends"),
        ([Connect("d"), Publish("t", b"", properties=Properties(subscription_identifiers=(1,)))], "Subscription Iden"),
    ],
)
async def test_what_no_client_may_send_is_noted_and_the_connection_ends(
    files: Path, packets: list[Packet], why: str
) -> None:
    async with Stand(PAPERS, Conduct(), "127.0.0.1", 0) as stand:
        client = await dialled(stand, files)
        for packet in packets:
            await client.send(packet.encode(V5))
        await client.end(PATIENCE)
        client.close()
        await until(lambda: stand.attempts[0].ended is not None)
        assert why in stand.attempts[0].noise
    assert judging.speaks_mqtt(stand.attempts).verdict is Verdict.FAIL


async def test_what_a_client_may_send_is_no_noise(files: Path) -> None:
    async with Stand(PAPERS, Conduct(), "127.0.0.1", 0) as stand:
        client = await dialled(stand, files)
        await connack(client, Connect("d"))
        for packet in (subscription(1, "a"), Pubrec(7), Pubcomp(7), Puback(8), Pingreq(), Disconnect()):
            await client.send(packet.encode(V5))
        await until(lambda: stand.attempts[0].ended is not None)
        client.close()
        assert stand.attempts[0].noise == ""


async def plain(port: int, data: bytes) -> bytes:
    """Send *data* without TLS, and return what comes until the end."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(data)
    try:
        return await asyncio.wait_for(reader.read(), PATIENCE)
    except ConnectionResetError:
        return b""
    finally:
        writer.close()


def without_tls(stand: Stand) -> list[Attempt]:
    return [each for each in stand.attempts if each.in_clear]


@pytest.mark.parametrize("data", [Connect("d", username="meter-1").encode(V5), b"GET /mqtt HTTP/1.1\r\n\r\n"])
@pytest.mark.parametrize(
    "conduct", [Conduct(ServerPaper.OTHER_CA), Conduct(drop_at=Step.HELLO), Conduct(tls11_only=True)]
)
async def test_what_is_sent_without_tls_is_noted(conduct: Conduct, data: bytes) -> None:
    """A device that falls back to no TLS at all has told everybody on the way."""
    async with Stand(PAPERS, conduct, "127.0.0.1", 0) as stand:
        await plain(stand.port, data)
        await until(lambda: stand.attempts[0].ended is not None)
        assert len(without_tls(stand)) == 1
        assert stand.attempts[0].sent_data
    assert judging.verifies(stand.attempts)[0].verdict is Verdict.FAIL
    assert judging.refuses_old_tls(stand.attempts)[0].verdict is Verdict.FAIL


async def test_what_is_sent_without_tls_to_a_server_that_says_nothing_is_noted() -> None:
    async with Stand(PAPERS, Conduct(silent_at=Step.TCP), "127.0.0.1", 0) as stand:
        _, writer = await asyncio.open_connection("127.0.0.1", stand.port)
        writer.write(Connect("d").encode(V5))
        await until(lambda: bool(without_tls(stand)))
        writer.close()
        await until(lambda: stand.attempts[0].ended is not None)


@pytest.mark.parametrize(
    ("conduct", "refusal", "alert"),
    [
        (Conduct(anonymous=True), "no_shared_cipher", False),  # It offers none without a certificate.
        (Conduct(ServerPaper.OTHER_CA), "unknown_ca", True),
    ],
)
async def test_an_alert_is_the_device_s_and_what_the_stand_cannot_speak_is_not(
    conduct: Conduct, refusal: str, alert: bool
) -> None:
    context = ssl.create_default_context(cadata=PAPERS.anchors)
    async with Stand(PAPERS, conduct, "127.0.0.1", 0) as stand:
        with pytest.raises(NotAdmitted):
            await RawClient.dial(Endpoint("127.0.0.1", stand.port, "localhost"), context)
        await until(lambda: stand.attempts[0].ended is not None)
        assert (stand.attempts[0].refusal, stand.attempts[0].alert) == (refusal, alert)


@pytest.mark.parametrize("begun", [b"", b"\x16\x03", b"\x16\x03\x01\x02\x00\x01\x00"])
async def test_who_breaks_off_in_its_hello_has_ended_at_once(begun: bytes) -> None:
    async with Stand(PAPERS, Conduct(ServerPaper.OTHER_CA), "127.0.0.1", 0) as stand:
        _, writer = await asyncio.open_connection("127.0.0.1", stand.port)
        writer.write(begun)
        await until(lambda: len(stand.attempts) == 1)
        writer.close()
        await writer.wait_closed()
        async with asyncio.timeout(PATIENCE):
            while stand.attempts[0].ended is None:
                await stand.change()
        assert not stand.attempts[0].sent_data
        # It has not seen whom it was connected to.
        assert judging.verifies(stand.attempts)[0].verdict is Verdict.SKIP


async def test_a_hello_in_several_records_is_read_like_any_other() -> None:
    context = ssl.create_default_context(cadata=PAPERS.anchors)
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context.wrap_bio(incoming, outgoing, server_hostname="localhost")
    with pytest.raises(ssl.SSLWantReadError):
        tls.do_handshake()
    record = outgoing.read()
    body = record[5:]
    pieces = [body[at : at + 100] for at in range(0, len(body), 100)]
    async with Stand(PAPERS, Conduct(drop_at=Step.HELLO), "127.0.0.1", 0) as stand:
        await plain(stand.port, b"".join(record[:3] + len(each).to_bytes(2, "big") + each for each in pieces))
        await until(lambda: stand.attempts[0].ended is not None)
        assert (stand.attempts[0].offered, stand.attempts[0].in_clear) == (0x0304, False)


# What comes before CONNACK is read in the device's version


async def test_who_does_not_wait_for_connack_is_understood_in_its_own_version(files: Path) -> None:
    """CONNECT and SUBSCRIBE may come in one segment, and MQTT 5 writes the second otherwise than MQTT 3.1.1."""
    asked = Subscribe(1, (SubscriptionRequest("fleet/meters/meter-1/cmd/#", QoS.AT_LEAST_ONCE),))
    async with Stand(PAPERS, Conduct(ponders=True), "127.0.0.1", 0) as stand:
        client = await dialled(stand, files)
        await client.send(Connect("d").encode() + asked.encode(V5))
        assert [type(each) for each in await received(client, 2)] == [Connack, Suback]
        client.close()
    assert [packet for _, packet in stand.attempts[0].packets] == [Connect("d"), asked]
    assert stand.attempts[0].noise == ""


@pytest.mark.parametrize("conduct", [Conduct(silent_at=Step.TLS), Conduct(silent_at=Step.CONNACK)])
async def test_who_leaves_a_silent_broker_politely_is_understood_in_its_own_version(
    files: Path, conduct: Conduct
) -> None:
    goodbye = Disconnect(ReasonCode.DISCONNECT_WITH_WILL_MESSAGE, Properties(reason_string="no CONNACK"))
    async with Stand(PAPERS, conduct, "127.0.0.1", 0) as stand:
        client = await dialled(stand, files)
        await client.send(Connect("d").encode())
        await until(lambda: bool(stand.attempts) and bool(stand.attempts[0].packets))
        await client.send(goodbye.encode(V5))
        client.close()
        await until(lambda: stand.attempts[0].ended is not None)
    assert [packet for _, packet in stand.attempts[0].packets] == [Connect("d"), goodbye]
    assert stand.attempts[0].noise == ""
