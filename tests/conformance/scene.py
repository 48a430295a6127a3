"""What the conformance tests share: a broker that permits every topic, raw packets, and how a connection ends.

A test is named by the statements it shows (`matrix`); where 3.1.1 and 5.0 say the same it is run in both versions, and
in MQTT 3.1, whose standard has no numbered statements, unless that says otherwise (`unlike_31`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from broker.admission.policy import Rules
from broker.mqtt.acks import Pubcomp, Pubrec, Pubrel
from broker.mqtt.codes import PacketType, ProtocolVersion, ReasonCode
from broker.mqtt.connect import Connack
from broker.mqtt.publication import Publish
from broker.mqtt.subscribe import Suback
from broker.mqtt.wire import encode_frame, encode_two_byte_integer, encode_variable_integer
from broker.store.journal import Journal
from provisioning.pki.role import Role
from tests.support.pki import Held, shared_service
from tests.support.policies import of_roles
from tests.support.wire import V5, V31, V311, Kind, MemoryBroker, WireClient, publication

MALFORMED, PROTOCOL_ERROR = ReasonCode.MALFORMED_PACKET, ReasonCode.PROTOCOL_ERROR

WILL_FLAG, USER_NAME_FLAG, PASSWORD_FLAG = 0x04, 0x80, 0x40

_EVERYTHING = Rules(publish_allow=("#", "$SYS/#"), subscribe_allow=("#", "$SYS/#"))
OPEN_POLICY = of_roles({Role.SERVICE: _EVERYTHING, Role.DEVICE: _EVERYTHING})
"""The standard knows no permissions: here everybody may do everything."""

ILL_FORMED = (b"\xff", b"\xc0\x80", b"\xed\xa0\x80", b"\xf4\x90\x80\x80")
"""Not UTF-8: no lead byte, an overlong form, a surrogate, behind the last code point."""

unlike_31 = pytest.mark.parametrize("version", [V311, V5], ids=["mqtt311", "mqtt5"], indirect=True)
"""MQTT 3.1 says otherwise: no Session Present, no flags that are reserved, DUP in what is sent again, always an
identifier, no failure in SUBACK."""


class PatientClient(WireClient):
    """A client whose SUBACK may come behind messages: it waits for the store, and they do not (MQTT 5 §3.8.4)."""

    def next_packet(self, kind: type[Kind]) -> Kind:
        """Return the next packet, or the next SUBACK, if that is wanted."""
        packets = self.transport.packets
        place = next((place for place, packet in enumerate(packets) if packet[0] >> 4 == PacketType.SUBACK), 0)
        if kind is Suback and place:
            packet = packets[place]
            del packets[place]
            packets.appendleft(packet)
        return super().next_packet(kind)


class DurableBroker(MemoryBroker):
    """A broker whose journal is written between two turns, as the store does it; nothing is on a disk here."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.journal = self.engine.journal = Journal(0.0)

    def open(self, holder: Held | None, *, version: ProtocolVersion = V5, path: Sequence[bytes] = ()) -> WireClient:
        """Return a client whose TLS is up, that has not sent anything yet."""
        return PatientClient(self, holder, version, path)

    def settle(self) -> None:
        """Let the loop come round, and the store write what there is, until there is nothing more to do."""
        super().settle()
        while self.journal.take() is not None:
            self.engine.stored(self.now)
            super().settle()


def open_broker(**limits: Any) -> MemoryBroker:
    """Return a broker that permits every topic."""
    return MemoryBroker(policy=OPEN_POLICY, **limits)


def text(data: bytes | str) -> bytes:
    """Return a string as it is on the wire, well-formed or not."""
    raw = data.encode() if isinstance(data, str) else data
    return encode_two_byte_integer(len(raw)) + raw


def protocol_name(version: ProtocolVersion) -> str:
    """Return what a CONNECT of *version* begins with."""
    return "MQIsdp" if version is V31 else "MQTT"


def section(version: ProtocolVersion, properties: bytes = b"") -> bytes:
    """Return a property section, or nothing before MQTT 5."""
    return encode_variable_integer(len(properties)) + properties if version is V5 else b""


def raw_connect(
    version: ProtocolVersion,
    *rest: bytes,
    flags: int = 0x02,
    client_id: bytes | str = "client",
    name: str | None = None,
    level: int | None = None,
    properties: bytes = b"",
) -> bytes:
    """Return a CONNECT with these *flags*; *rest* follows the client identifier."""
    header = text(name or protocol_name(version)) + bytes((level or version, flags, 0, 0))
    return encode_frame(0x10, header + section(version, properties) + text(client_id) + b"".join(rest))


def raw_will(version: ProtocolVersion, topic: bytes | str = "will", payload: bytes | str = "gone") -> bytes:
    """Return the will of a CONNECT as it is on the wire."""
    return (b"\0" if version is V5 else b"") + text(topic) + text(payload)


def raw_publish(
    version: ProtocolVersion,
    topic: bytes | str,
    payload: bytes = b"",
    *,
    first: int = 0x30,
    packet_id: int | None = None,
    properties: bytes = b"",
) -> bytes:
    """Return a PUBLISH with any first byte."""
    identifier = b"" if packet_id is None else encode_two_byte_integer(packet_id)
    return encode_frame(first, text(topic) + identifier + section(version, properties) + payload)


def raw_subscribe(
    version: ProtocolVersion,
    topic_filter: bytes | str,
    options: int = 0,
    *,
    first: int = 0x82,
    packet_id: int = 1,
    properties: bytes = b"",
) -> bytes:
    """Return a SUBSCRIBE with any first byte and options."""
    head = encode_two_byte_integer(packet_id) + section(version, properties)
    return encode_frame(first, head + text(topic_filter) + bytes((options,)))


def raw_unsubscribe(
    version: ProtocolVersion, topic_filter: bytes | str, *, first: int = 0xA2, packet_id: int = 1
) -> bytes:
    """Return an UNSUBSCRIBE with any first byte."""
    return encode_frame(first, encode_two_byte_integer(packet_id) + section(version) + text(topic_filter))


def stranger(broker: MemoryBroker, version: ProtocolVersion, name: str = "client") -> WireClient:
    """Return the service *name* before its CONNECT."""
    return broker.open(shared_service(name), version=version)


def keeping(version: ProtocolVersion) -> dict[str, Any]:
    """Return the fields of a CONNECT whose session outlives its connection."""
    return {"clean_start": False} | ({"session_expiry_interval": 3600} if version is V5 else {})


def durable(broker: MemoryBroker, version: ProtocolVersion) -> dict[str, Any]:
    """Return the fields of a CONNECT whose session is kept where the broker has a store: messages go another way."""
    return keeping(version) if isinstance(broker, DurableBroker) else {}


def assert_ended(client: WireClient, reason: ReasonCode = MALFORMED) -> None:
    """The broker closed the connection: MQTT 5 is told why, 3.1.1 just sees the end."""
    if client.version is V5:
        assert client.farewell().reason_code is reason
    else:
        assert client.received() == []
        assert client.closed


def assert_closed_in_silence(client: WireClient) -> None:
    """The broker closed the connection without a word."""
    assert client.received() == []
    assert client.closed


def assert_bad_connect(client: WireClient) -> None:
    """The broker closed the connection for a bad CONNECT; one of MQTT 5 was told why in a CONNACK (§4.13.1)."""
    if client.version is V5:
        answer = client.next_packet(Connack)
        assert answer.reason_code.is_failure
        assert not answer.session_present
        assert str(answer.properties.reason_string).startswith("BAD_PACKET: ")
    assert_closed_in_silence(client)


def exactly_once(client: WireClient, topic: str, payload: bytes = b"", **fields: Any) -> None:
    """Publish at QoS 2, with the whole exchange."""
    packet_id = client.packet_id()
    client.send(publication(topic, payload, 2, packet_id=packet_id, **fields))
    assert client.next_packet(Pubrec) == Pubrec(packet_id)
    client.send(Pubrel(packet_id))
    assert client.next_packet(Pubcomp) == Pubcomp(packet_id)


def finish(client: WireClient, *messages: Publish) -> None:
    """Acknowledge QoS 2 *messages* to the end."""
    for message in messages:
        assert message.packet_id is not None
        client.send(Pubrec(message.packet_id))
        assert client.next_packet(Pubrel) == Pubrel(message.packet_id)
        client.send(Pubcomp(message.packet_id))


def late(broker: MemoryBroker, *filters: Any, version: ProtocolVersion = V5, qos: int = 2) -> WireClient:
    """Return a new client that has just subscribed."""
    client = broker.service(f"late-{len(broker.engine.registry)}", version=version, **durable(broker, version))
    client.subscribe(*(filters or ("t",)), qos=qos)
    return client
