"""Sections 3.1.3 and 3.1.4: the payload of CONNECT, and what it leads to."""

from __future__ import annotations

from typing import Any

import pytest

from broker.mqtt.acks import Puback
from broker.mqtt.codes import ProtocolVersion, ReasonCode
from broker.mqtt.connect import Connack
from broker.mqtt.packets import Pingreq, Suback
from broker.mqtt.wire import encode_frame
from tests.conformance.scene import (
    ILL_FORMED,
    PASSWORD_FLAG,
    USER_NAME_FLAG,
    WILL_FLAG,
    assert_bad_connect,
    assert_closed_in_silence,
    assert_ended,
    keeping,
    open_broker,
    protocol_name,
    raw_connect,
    raw_will,
    section,
    stranger,
    text,
    unlike_31,
)
from tests.support.pki import shared_service
from tests.support.wire import V5, V311, MemoryBroker, WireClient, connect_packet, publication, will


def test_mqtt5_3_1_3_1_mqtt311_3_1_3_1_the_payload_has_its_order(
    broker: MemoryBroker, version: ProtocolVersion, watcher: WireClient
) -> None:
    """The payload's order is client identifier, will, user name, password."""
    client = stranger(broker, version)
    flags = 0x02 | WILL_FLAG | USER_NAME_FLAG | PASSWORD_FLAG
    fields = raw_will(version, payload=b"\xff"), text("user"), text(b"\xfe\0")  # The first and the last are bytes.
    client.send_bytes(raw_connect(version, *fields, flags=flags))
    assert client.next_packet(Connack).reason_code is ReasonCode.SUCCESS
    assert client.session.client_id == "client"
    client.vanish()
    assert [(message.topic, message.payload) for message in watcher.messages()] == [("will", b"\xff")]
    other = stranger(broker, version)
    other.send_bytes(raw_connect(version, text(b"\xfe\0"), text("user"), flags=0x02 | USER_NAME_FLAG | PASSWORD_FLAG))
    assert_bad_connect(other)


@unlike_31
def test_mqtt5_3_1_3_2_mqtt311_3_1_3_2_the_identifier_names_the_session(
    broker: MemoryBroker, version: ProtocolVersion
) -> None:
    """The client identifier names the session state."""
    for client_id in ("client", "client-2"):
        client = stranger(broker, version)
        assert not client.connect(client_id=client_id, **keeping(version)).session_present
        client.vanish()
    for client_id in ("client", "client-2"):
        assert stranger(broker, version).connect(client_id=client_id, **keeping(version)).session_present


def test_mqtt5_3_1_3_3_mqtt311_3_1_3_3_the_identifier_is_present(
    broker: MemoryBroker, version: ProtocolVersion
) -> None:
    """The client identifier is present, as the payload's first field."""
    client = stranger(broker, version)
    client.send_bytes(encode_frame(0x10, text(protocol_name(version)) + bytes((version, 2, 0, 0)) + section(version)))
    assert_bad_connect(client)


@pytest.mark.parametrize("bad", [*ILL_FORMED, b"a\0"])
def test_mqtt5_3_1_3_4_mqtt311_3_1_3_4_the_identifier_is_text(
    broker: MemoryBroker, version: ProtocolVersion, bad: bytes
) -> None:
    """The client identifier is a UTF-8 string."""
    client = stranger(broker, version)
    client.send_bytes(raw_connect(version, client_id=bad))
    assert_bad_connect(client)


@pytest.mark.parametrize("client_id", ["0", "0123456789abcdefghijklm", "nopqrstuvwxyzABCDEFGHIJ", "KLMNOPQRSTUVWXYZ"])
def test_mqtt5_3_1_3_5_mqtt311_3_1_3_5_short_plain_identifiers_are_allowed(
    broker: MemoryBroker, version: ProtocolVersion, client_id: str
) -> None:
    """Client identifiers of 1 to 23 letters and digits are allowed."""
    client = stranger(broker, version, client_id)  # Each client may have its own; whose it is, its certificate says.
    assert client.connect(client_id=client_id).reason_code is ReasonCode.SUCCESS


@unlike_31
def test_mqtt5_3_1_3_6_mqtt311_3_1_3_6_an_empty_identifier_is_replaced_by_a_unique_one(
    broker: MemoryBroker, version: ProtocolVersion
) -> None:
    """A client with an empty identifier is assigned a unique one."""
    clients = [broker.service("client", version=version, client_id="") for _ in range(3)]
    names = {client.session.client_id for client in clients}
    assert len(names) == 3
    assert "" not in names
    assert not any(client.closed for client in clients)


def test_mqtt5_3_1_3_7_the_assigned_identifier_is_told_and_works(broker: MemoryBroker) -> None:
    """The client goes on as if it had sent the assigned identifier, and is told it in CONNACK."""
    client = stranger(broker, V5)
    assigned = client.connect(client_id="", session_expiry_interval=60).properties.assigned_client_identifier
    assert assigned == client.session.client_id
    client.vanish()
    assert stranger(broker, V5).connect(client_id=assigned, clean_start=False).session_present


def test_mqtt311_3_1_3_8_an_empty_identifier_needs_a_clean_session(broker: MemoryBroker) -> None:
    """An empty identifier with Clean Session 0 is refused with return code 2, and the connection closed."""
    client = stranger(broker, V311)
    client.connect(client_id="", clean_start=False, expect=ReasonCode.CLIENT_IDENTIFIER_NOT_VALID)
    assert_closed_in_silence(client)


def test_mqtt5_3_1_3_8_mqtt311_3_1_3_9_a_rejected_identifier_is_said(
    broker: MemoryBroker, version: ProtocolVersion
) -> None:
    """A rejected identifier may be answered with 0x85, and the connection is closed."""
    client = stranger(broker, version)
    client.connect(client_id="somebody-else", expect=ReasonCode.CLIENT_IDENTIFIER_NOT_VALID)
    assert_closed_in_silence(client)


def test_mqtt5_3_1_3_9_a_client_that_is_back_calls_its_will_back(broker: MemoryBroker, watcher: WireClient) -> None:
    """A new connection of the session within the will delay calls the will back."""
    broker.service("client", session_expiry_interval=60, will=will("w", will_delay_interval=10)).vanish()
    broker.advance(5)
    broker.service("client", session_expiry_interval=60, clean_start=False)
    broker.advance(120)
    assert watcher.received() == []


def test_mqtt5_3_1_3_10_the_user_properties_of_a_will_keep_their_order(
    broker: MemoryBroker, watcher: WireClient
) -> None:
    """The user properties of a will keep their order."""
    pairs = (("b", "1"), ("a", "2"), ("b", "1"), ("a", "0"))
    broker.service("client", will=will("w", user_properties=pairs)).vanish()
    assert [message.properties.user_properties for message in watcher.messages()] == [pairs]


@pytest.mark.parametrize("bad", [*ILL_FORMED, b"a\0"])
def test_mqtt5_3_1_3_11_mqtt311_3_1_3_10_the_will_topic_is_text(
    broker: MemoryBroker, version: ProtocolVersion, bad: bytes
) -> None:
    """The will topic is a UTF-8 string."""
    client = stranger(broker, version)
    client.send_bytes(raw_connect(version, raw_will(version, bad), flags=0x02 | WILL_FLAG))
    assert_bad_connect(client)


@pytest.mark.parametrize("bad", [*ILL_FORMED, b"a\0"])
def test_mqtt5_3_1_3_12_mqtt311_3_1_3_11_the_user_name_is_text(
    broker: MemoryBroker, version: ProtocolVersion, bad: bytes
) -> None:
    """The user name is a UTF-8 string."""
    client = stranger(broker, version)
    client.send_bytes(raw_connect(version, text(bad), flags=0x02 | USER_NAME_FLAG))
    assert_bad_connect(client)


@pytest.mark.parametrize(
    "bad",
    [
        lambda v: raw_connect(v, b"behind the end"),
        lambda v: encode_frame(0x10, text(protocol_name(v)) + bytes((v, 2))),
        lambda v: encode_frame(0x10, raw_connect(v)[2:-1]),
        lambda v: raw_connect(v, raw_will(v, "will/#"), flags=0x02 | WILL_FLAG),
    ],
)
def test_mqtt5_3_1_4_1_mqtt311_3_1_4_1_mqtt311_3_2_2_6_a_bad_connect_closes(
    broker: MemoryBroker, version: ProtocolVersion, bad: Any
) -> None:
    """A CONNECT that does not conform closes the connection."""
    client = stranger(broker, version)
    client.send_bytes(bad(version))
    assert_bad_connect(client)


def test_mqtt5_3_1_4_2_a_stranger_is_closed(broker: MemoryBroker) -> None:
    """A CONNECT that fails authentication or authorisation closes the connection."""
    client = broker.open(None)
    client.connect(client_id="client", expect=ReasonCode.NOT_AUTHORIZED)
    assert_closed_in_silence(client)


def test_mqtt5_3_1_4_3_mqtt311_3_1_4_2_the_older_connection_is_closed(
    broker: MemoryBroker, version: ProtocolVersion
) -> None:
    """A client identifier that is connected already: the older connection gets 0x8E and is closed."""
    older = broker.service("client", version=version)
    broker.service("client", version=version)
    assert_ended(older, ReasonCode.SESSION_TAKEN_OVER)


def test_mqtt5_3_1_4_5_mqtt311_3_1_4_4_an_accepted_connect_is_answered(
    broker: MemoryBroker, version: ProtocolVersion
) -> None:
    """An accepted CONNECT is answered with 0x00."""
    client = stranger(broker, version)
    client.send(connect_packet(version, client_id="client"))
    (answer,) = client.received()
    assert isinstance(answer, Connack)
    assert answer.reason_code is ReasonCode.SUCCESS
    assert not client.closed


def test_mqtt5_3_1_4_6_mqtt311_3_1_4_5_nothing_behind_a_rejected_connect_is_processed(
    version: ProtocolVersion,
) -> None:
    """Nothing behind a rejected CONNECT is processed but AUTH."""
    broker = open_broker()
    watcher = broker.service("watcher")
    watcher.subscribe("#")
    client = broker.open(shared_service("client"), version=version)
    client.send(
        connect_packet(version, client_id="somebody-else"),
        connect_packet(version, client_id="client"),  # It would be accepted.
        publication("t", b"1", retain=True),
        Pingreq(),
    )
    (answer,) = client.received()
    assert isinstance(answer, Connack)
    assert answer.reason_code is ReasonCode.CLIENT_IDENTIFIER_NOT_VALID
    assert len(broker.engine.registry) == 1
    client.send(publication("t", b"2", 1, packet_id=1))
    assert watcher.received() == []
    assert len(broker.engine.retained) == 0
    assert not {Puback, Suback} & {type(packet) for packet in client.received()}
