"""Our codec against two that nobody here wrote: paho-mqtt (3.1, 3.1.1, 5) and amqtt (3.1.1).

Broker and simulator share one codec, so a mistake in it could cancel itself out. Here each side's bytes are read by
the other.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

import pytest
from amqtt.adapters import BufferReader
from amqtt.mqtt import packet_class
from amqtt.mqtt.connack import ConnackPacket
from amqtt.mqtt.connect import ConnectPacket, ConnectPayload, ConnectVariableHeader
from amqtt.mqtt.packet import MQTTFixedHeader
from amqtt.mqtt.puback import PubackPacket
from amqtt.mqtt.publish import PublishPacket
from amqtt.mqtt.pubrel import PubrelPacket
from amqtt.mqtt.suback import SubackPacket
from amqtt.mqtt.subscribe import SubscribePacket
from amqtt.mqtt.unsubscribe import UnsubscribePacket
from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties as PahoProperties
from paho.mqtt.subscribeoptions import SubscribeOptions

from broker.mqtt.codes import PacketType, ProtocolVersion, QoS, ReasonCode, RetainHandling
from broker.mqtt.packets import (
    Connack,
    Connect,
    Disconnect,
    Packet,
    Pingreq,
    Pingresp,
    Puback,
    Pubcomp,
    Publish,
    Pubrec,
    Pubrel,
    Suback,
    Subscribe,
    SubscriptionRequest,
    Unsuback,
    Unsubscribe,
    Will,
    decode_packet,
)
from broker.mqtt.properties import NO_PROPERTIES, Properties, encode_properties
from tests.support.packet_cases import PACKET_CASES, PacketCase, split_packet

NAMELESS = "3.1.1 CONNECT without a client identifier"
V31, V311, V5 = ProtocolVersion.V31, ProtocolVersion.V311, ProtocolVersion.V5


class PipedClient(Client):
    """A paho client at one end of a socket pair; the test holds the other and plays the server."""

    def __init__(self, version: ProtocolVersion, **arguments: Any) -> None:
        protocol = MQTTProtocolVersion(version)
        super().__init__(CallbackAPIVersion.VERSION2, client_id="meter-17", protocol=protocol, **arguments)
        self.version = version
        self._client_end, self.server_end = socket.socketpair()
        self.server_end.settimeout(60)
        self.messages: list[MQTTMessage] = []
        self.on_message = lambda _client, _userdata, message: self.messages.append(message)

    def _create_socket_connection(self) -> socket.socket:
        return self._client_end

    def receive(self) -> Packet:
        """Return the one packet that the client has written."""
        first_byte, body = split_packet(self.server_end.recv(65536))
        return decode_packet(first_byte, body, self.version)

    def answer(self, packet: Packet) -> None:
        """Let the client read *packet*."""
        self.server_end.sendall(packet.encode(self.version))
        assert self.loop_read() == 0


@pytest.fixture(params=ProtocolVersion, ids=lambda version: version.name)
def client(request: pytest.FixtureRequest) -> Iterator[PipedClient]:
    client = PipedClient(request.param)
    client.connect("socket pair", keepalive=30)
    expected = Connect(client_id="meter-17", protocol_version=request.param, clean_start=True, keep_alive=30)
    assert client.receive() == expected
    client.answer(Connack())
    assert client.is_connected()
    yield client
    client.disconnect()
    assert client.receive() == Disconnect()
    client.server_end.close()
    client.loop_misc()


def test_paho_publishes_at_every_qos(client: PipedClient) -> None:
    client.publish("a/b", b"zero", retain=True)
    assert client.receive() == Publish("a/b", b"zero", retain=True)

    one = client.publish("a/é", b"one", qos=1)
    assert client.receive() == Publish("a/é", b"one", QoS.AT_LEAST_ONCE, packet_id=one.mid)
    client.answer(Puback(one.mid))
    assert one.is_published()

    two = client.publish("a", bytes(300), qos=2)
    assert client.receive() == Publish("a", bytes(300), QoS.EXACTLY_ONCE, packet_id=two.mid)
    client.answer(Pubrec(two.mid))
    assert client.receive() == Pubrel(two.mid)
    client.answer(Pubcomp(two.mid))
    assert two.is_published()


def test_paho_receives_at_every_qos(client: PipedClient) -> None:
    client.answer(Publish("a/b", b"zero", retain=True))
    client.answer(Publish("a/é", b"one", QoS.AT_LEAST_ONCE, packet_id=7))
    assert client.receive() == Puback(7)
    client.answer(Publish("a", bytes(300), QoS.EXACTLY_ONCE, packet_id=65535))
    assert client.receive() == Pubrec(65535)
    client.answer(Pubrel(65535))
    assert client.receive() == Pubcomp(65535)

    received = [(each.topic, each.payload, each.qos, each.retain) for each in client.messages]
    assert received == [("a/b", b"zero", 0, True), ("a/é", b"one", 1, False), ("a", bytes(300), 2, False)]


def test_paho_subscribes_and_unsubscribes(client: PipedClient) -> None:
    granted: list[list[int]] = []
    client.on_subscribe = lambda *arguments: granted.append([code.value for code in arguments[3]])

    mid = client.subscribe([("a/#", 1), ("+/b", 2)])[1]
    requests = (SubscriptionRequest("a/#", QoS.AT_LEAST_ONCE), SubscriptionRequest("+/b", QoS.EXACTLY_ONCE))
    assert mid is not None
    assert client.receive() == Subscribe(mid, requests)
    client.answer(Suback(mid, (ReasonCode.GRANTED_QOS_1, ReasonCode.UNSPECIFIED_ERROR)))
    assert granted == [[1, 0x80]]

    mid = client.unsubscribe(["a/#", "+/b"])[1]
    assert mid is not None
    assert client.receive() == Unsubscribe(mid, ("a/#", "+/b"))
    client.answer(Unsuback(mid, (ReasonCode.SUCCESS, ReasonCode.NO_SUBSCRIPTION_EXISTED)))


def test_paho_pings(client: PipedClient) -> None:
    client._send_pingreq()
    assert client.receive() == Pingreq()
    client.answer(Pingresp())


@pytest.mark.parametrize("version", ProtocolVersion)
def test_paho_is_refused(version: ProtocolVersion) -> None:
    reasons: list[str] = []
    client = PipedClient(version)
    client.on_connect = lambda *arguments: reasons.append(str(arguments[3]))
    client.connect("socket pair")
    client.receive()

    client.server_end.sendall(Connack(ReasonCode.NOT_AUTHORIZED).encode(version))
    client.loop_read()
    client.server_end.close()

    assert reasons == ["Not authorized"]


@pytest.mark.parametrize("version", ProtocolVersion)
def test_paho_connects_with_everything(version: ProtocolVersion) -> None:
    client = PipedClient(version, **({} if version is V5 else {"clean_session": False}))
    client.username_pw_set("me", "pässword")
    client.will_set("gone", b"\x00bye", qos=2, retain=True)
    options: dict[str, Any] = {"clean_start": False} if version is V5 else {}
    client.connect("socket pair", keepalive=65535, **options)

    assert client.receive() == Connect(
        client_id="meter-17",
        protocol_version=version,
        clean_start=False,
        keep_alive=65535,
        will=Will("gone", b"\x00bye", QoS.EXACTLY_ONCE, retain=True),
        username="me",
        password="pässword".encode(),
    )
    client.answer(Connack())
    client.disconnect()
    client.loop_misc()
    client.server_end.close()


def paho_properties(packet_type: int, **values: Any) -> PahoProperties:
    found = PahoProperties(packet_type)
    for name, value in values.items():
        setattr(found, name, value)
    return found


def test_paho_sends_the_properties_of_every_packet() -> None:
    client = PipedClient(V5)
    client.will_set(
        "gone",
        b"bye",
        properties=paho_properties(
            PacketTypes.WILLMESSAGE,
            WillDelayInterval=5,
            PayloadFormatIndicator=1,
            MessageExpiryInterval=60,
            ContentType="text/plain",
            ResponseTopic="reply",
            CorrelationData=b"\x00\x01",
            UserProperty=[("a", "b"), ("a", "c")],
        ),
    )
    client.connect(
        "socket pair",
        properties=paho_properties(
            PacketTypes.CONNECT,
            SessionExpiryInterval=3600,
            ReceiveMaximum=20,
            MaximumPacketSize=65536,
            TopicAliasMaximum=10,
            RequestResponseInformation=1,
            RequestProblemInformation=0,
            UserProperty=("k", "v"),
        ),
    )
    packet = client.receive()
    assert isinstance(packet, Connect)
    assert packet.properties == Properties(
        session_expiry_interval=3600,
        receive_maximum=20,
        maximum_packet_size=65536,
        topic_alias_maximum=10,
        request_response_information=True,
        request_problem_information=False,
        user_properties=(("k", "v"),),
    )
    assert packet.will is not None
    assert packet.will.properties == Properties(
        will_delay_interval=5,
        payload_format_indicator=1,
        message_expiry_interval=60,
        content_type="text/plain",
        response_topic="reply",
        correlation_data=b"\x00\x01",
        user_properties=(("a", "b"), ("a", "c")),
    )
    client.answer(Connack())

    client.publish("a", b"x", properties=paho_properties(PacketTypes.PUBLISH, TopicAlias=3, MessageExpiryInterval=9))
    assert client.receive() == Publish("a", b"x", properties=Properties(topic_alias=3, message_expiry_interval=9))

    options = SubscribeOptions(qos=1, noLocal=True, retainAsPublished=True, retainHandling=2)
    identified = paho_properties(PacketTypes.SUBSCRIBE, SubscriptionIdentifier=300)
    mid = client.subscribe("a/#", options=options, properties=identified)[1]
    assert mid is not None
    request = SubscriptionRequest(
        "a/#",
        QoS.AT_LEAST_ONCE,
        no_local=True,
        retain_as_published=True,
        retain_handling=RetainHandling.DO_NOT_SEND,
    )
    assert client.receive() == Subscribe(mid, (request,), Properties(subscription_identifiers=(300,)))

    client.disconnect(properties=paho_properties(PacketTypes.DISCONNECT, SessionExpiryInterval=0))
    assert client.receive() == Disconnect(properties=Properties(session_expiry_interval=0))
    client.loop_misc()
    client.server_end.close()


# paho's names for what is not simply our name in another case.
PAHO_NAMES = {
    "subscription_identifiers": "SubscriptionIdentifier",
    "user_properties": "UserProperty",
    "maximum_qos": "MaximumQoS",
}
CASES_WITH_PROPERTIES = [
    (case.name, case.packet.packet_type, case.packet.properties)
    for case in PACKET_CASES
    if not isinstance(case.packet, Pingreq | Pingresp) and case.packet.properties is not NO_PROPERTIES
]


@pytest.mark.parametrize(
    ("packet_type", "ours"),
    [case[1:] for case in CASES_WITH_PROPERTIES],
    ids=[case[0] for case in CASES_WITH_PROPERTIES],
)
def test_paho_reads_the_properties_that_we_write(packet_type: PacketType, ours: Properties) -> None:
    theirs = PahoProperties(packet_type)
    theirs.unpack(encode_properties(ours, packet_type))

    for each in fields(ours):
        value = getattr(ours, each.name)
        paho_name = PAHO_NAMES.get(each.name, each.name.title().replace("_", ""))
        if isinstance(value, tuple):
            assert getattr(theirs, paho_name, []) == list(value)
        else:
            assert getattr(theirs, paho_name, None) == value


# amqtt makes up a client identifier where there is none.
AMQTT_CASES = [case for case in PACKET_CASES if case.version is V311 and case.name != NAMELESS]


@pytest.mark.parametrize("case", AMQTT_CASES, ids=lambda case: case.name)
async def test_amqtt_reads_our_bytes_and_writes_them_again(case: PacketCase) -> None:
    reader = BufferReader(case.packet.encode(V311))
    fixed_header = await MQTTFixedHeader.from_stream(reader)
    assert fixed_header is not None
    theirs = await packet_class(fixed_header).from_stream(reader, fixed_header=fixed_header)

    assert decode_packet(*split_packet(theirs.to_bytes()), V311) == case.packet
    assert theirs.to_bytes() == case.data


def amqtt_connect() -> ConnectPacket:
    header = ConnectVariableHeader(keep_alive=60)
    header.clean_session_flag = True
    header.username_flag = header.password_flag = header.will_flag = True
    header.will_qos = 1
    return ConnectPacket(
        variable_header=header,
        payload=ConnectPayload("meter-17", will_topic="gone", will_message=b"bye", username="me", password="pw"),
    )


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        (
            amqtt_connect(),
            Connect(
                client_id="meter-17",
                protocol_version=V311,
                keep_alive=60,
                will=Will("gone", b"bye", QoS.AT_LEAST_ONCE),
                username="me",
                password=b"pw",
            ),
        ),
        (ConnackPacket.build(1, 0), Connack(session_present=True)),
        (ConnackPacket.build(0, 4), Connack(ReasonCode.BAD_USER_NAME_OR_PASSWORD)),
        (
            PublishPacket.build("a/b", b"x" * 200, 9, dup_flag=True, qos=2, retain=True),
            Publish("a/b", b"x" * 200, QoS.EXACTLY_ONCE, retain=True, dup=True, packet_id=9),
        ),
        (PubackPacket.build(9), Puback(9)),
        (PubrelPacket.build(9), Pubrel(9)),
        (SubscribePacket.build([("a/#", 2)], 4), Subscribe(4, (SubscriptionRequest("a/#", QoS.EXACTLY_ONCE),))),
        (SubackPacket.build(4, [1, 0x80]), Suback(4, (ReasonCode.GRANTED_QOS_1, ReasonCode.UNSPECIFIED_ERROR))),
        (UnsubscribePacket.build(["a/#", "b"], 5), Unsubscribe(5, ("a/#", "b"))),
    ],
    ids=lambda value: type(value).__name__,
)
def test_we_read_what_amqtt_writes_and_write_the_same(theirs: Any, ours: Packet) -> None:
    data = theirs.to_bytes()

    assert decode_packet(*split_packet(data), V311) == ours
    assert ours.encode(V311) == data
