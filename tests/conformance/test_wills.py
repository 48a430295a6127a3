"""Section 3.1.2.5, more closely: every end of a connection with a will, and everything that a will carries."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from broker.mqtt.codes import ProtocolVersion, ReasonCode
from broker.mqtt.wire import encode_string, encode_two_byte_integer
from tests.conformance.scene import (
    WILL_FLAG,
    keeping,
    late,
    raw_connect,
    raw_will,
    stranger,
)
from tests.support.wire import V5, MemoryBroker, WireClient, connect_packet, will


def breaks_the_protocol(client: WireClient) -> None:
    client.send_bytes(b"\xc0\1x")


def sends_another_connect(client: WireClient) -> None:
    client.send(connect_packet(client.version, client_id="client"))


def is_silent(client: WireClient) -> None:
    client.broker.advance(16)


def is_taken_over(client: WireClient) -> None:
    client.broker.service("client", version=client.version, **keeping(client.version))


def is_disconnected(client: WireClient) -> None:
    client.connection.disconnect("BY_OPERATOR", ReasonCode.ADMINISTRATIVE_ACTION, "because", client.broker.now)
    client.broker.settle()


@pytest.mark.parametrize(
    "end",
    [WireClient.vanish, breaks_the_protocol, sends_another_connect, is_silent, is_taken_over, is_disconnected],
)
def test_mqtt5_3_1_2_8_mqtt311_3_1_2_8_a_will_follows_every_end_but_goodbye(
    broker: MemoryBroker, version: ProtocolVersion, watcher: WireClient, end: Callable[[WireClient], None]
) -> None:
    """The will is published after the connection and its delay, or the session, end, unless called back."""
    client = broker.service("client", version=version, keep_alive=10, will=will("w"), **keeping(version))
    end(client)
    assert client.closed
    assert watcher.payloads() == [b"gone"]


@pytest.mark.parametrize(
    "reason", [ReasonCode.DISCONNECT_WITH_WILL_MESSAGE, ReasonCode.UNSPECIFIED_ERROR, ReasonCode.QUOTA_EXCEEDED]
)
def test_mqtt5_3_1_2_8_goodbye_with_another_reason_leaves_the_will(
    broker: MemoryBroker, watcher: WireClient, reason: ReasonCode
) -> None:
    """The will is published after the connection and its delay, or the session, end, unless called back."""
    broker.service("client", will=will("w")).leave(reason)
    assert watcher.payloads() == [b"gone"]
    delayed = broker.service("client", will=will("w", will_delay_interval=5), session_expiry_interval=60)
    delayed.leave(reason)
    broker.advance(4)
    assert watcher.received() == []
    broker.advance(2)
    assert watcher.payloads() == [b"gone"]


def test_mqtt5_3_1_2_8_the_delay_passes_exactly(broker: MemoryBroker, watcher: WireClient) -> None:
    """The will is published after the connection and its delay, or the session, end, unless called back."""
    broker.service("client", will=will("w", will_delay_interval=20), session_expiry_interval=60).vanish()
    broker.advance(19)
    assert watcher.received() == []
    broker.advance(2)
    assert watcher.payloads() == [b"gone"]


def test_mqtt5_3_1_2_8_a_delay_is_over_with_the_session(broker: MemoryBroker, watcher: WireClient) -> None:
    """The will is published after the connection and its delay, or the session, end, unless called back."""
    delayed = will("w", will_delay_interval=20)
    broker.service("client", will=delayed).vanish()  # The session ends with the connection.
    assert watcher.payloads() == [b"gone"]
    broker.service("client", will=delayed, session_expiry_interval=60).vanish()
    broker.service("client", clean_start=True)  # So it does here: another one begins.
    assert watcher.payloads() == [b"gone"]
    older = broker.service("client", will=delayed, session_expiry_interval=60)
    broker.service("client", clean_start=True)  # Here, too, while the older connection is open.
    assert older.closed
    assert watcher.payloads() == [b"gone"]
    leaves = broker.service("client", will=delayed, session_expiry_interval=60)
    leaves.leave(ReasonCode.DISCONNECT_WITH_WILL_MESSAGE, session_expiry_interval=0)
    assert watcher.payloads() == [b"gone"]


def test_mqtt5_3_1_3_9_a_will_that_was_called_back_is_not_kept(broker: MemoryBroker, watcher: WireClient) -> None:
    """A new connection of the session within the will delay calls the will back."""
    delayed = will("w", b"first", will_delay_interval=10)
    broker.service("client", session_expiry_interval=60, will=delayed).vanish()
    back = broker.service("client", session_expiry_interval=60, clean_start=False)
    back.vanish()  # This connection has no will, and that of the first is gone.
    broker.advance(120)
    assert watcher.received() == []
    older = broker.service("client", session_expiry_interval=60, will=delayed)
    other = will("w", b"second", will_delay_interval=10)
    broker.service("client", session_expiry_interval=60, clean_start=False, will=other).vanish()
    assert older.closed  # Taken over within the delay.
    broker.advance(11)
    assert watcher.payloads() == [b"second"]


@pytest.mark.parametrize("qos", [0, 1, 2])
@pytest.mark.parametrize("retain", [False, True])
def test_mqtt5_3_1_2_9_mqtt311_3_1_2_9_the_flags_of_the_will_are_used(
    broker: MemoryBroker, version: ProtocolVersion, watcher: WireClient, qos: int, retain: bool
) -> None:
    """With the will flag, will properties, topic and payload are present, and will QoS and retain are used."""
    client = stranger(broker, version)
    client.send_bytes(
        raw_connect(version, raw_will(version, payload=b"\xff\0"), flags=0x02 | WILL_FLAG | qos << 3 | retain << 5)
    )
    client.vanish()
    (message,) = watcher.messages()
    assert (message.topic, message.payload, message.qos, message.retain) == ("will", b"\xff\0", qos, retain)
    kept = [(each.payload, each.qos, each.retain) for each in late(broker, "will").messages()]
    assert kept == ([(b"\xff\0", qos, True)] if retain else [])


WILL_PROPERTIES: dict[str, Any] = {
    "payload_format_indicator": 0,
    "content_type": "",
    "response_topic": "reply/to",
    "correlation_data": b"\0\xff",
    "user_properties": (("b", "1"), ("a", "2"), ("b", "1"), ("", "")),
    "message_expiry_interval": 100,
}


def test_mqtt5_3_1_2_9_the_properties_of_the_will_go_with_it(broker: MemoryBroker, watcher: WireClient) -> None:
    """With the will flag, will properties, topic and payload are present, and will QoS and retain are used."""
    delayed = will("w", retain=True, will_delay_interval=10, **WILL_PROPERTIES)
    broker.service("client", will=delayed, session_expiry_interval=60).vanish()
    broker.advance(10)
    (message,) = watcher.messages()
    assert {name: getattr(message.properties, name) for name in WILL_PROPERTIES} == WILL_PROPERTIES
    assert message.properties.will_delay_interval is None
    broker.advance(30)
    (message,) = late(broker, "w").messages()
    assert message.properties.message_expiry_interval == 70  # Counted from its publication, not from CONNECT.


@pytest.mark.parametrize("there", [0, 1, 2])
def test_mqtt5_3_1_2_9_the_will_needs_each_of_its_three_fields(broker: MemoryBroker, there: int) -> None:
    """With the will flag, will properties, topic and payload are present, and will QoS and retain are used."""
    client = stranger(broker, V5)
    fields = (b"\0", encode_string("will"), encode_two_byte_integer(0))
    client.send_bytes(raw_connect(V5, *fields[:there], flags=0x02 | WILL_FLAG))
    assert client.closed
    complete = stranger(broker, V5)
    complete.send_bytes(raw_connect(V5, *fields, flags=0x02 | WILL_FLAG))
    assert not complete.closed


def test_mqtt5_3_14_4_3_mqtt311_3_14_4_3_the_will_is_gone_for_good(
    broker: MemoryBroker, version: ProtocolVersion, watcher: WireClient
) -> None:
    """DISCONNECT with 0x00 discards the will without publishing it."""
    properties: dict[str, Any] = {"will_delay_interval": 5} if version is V5 else {}
    broker.service("client", version=version, will=will("w", **properties), **keeping(version)).leave()
    broker.service("client", version=version, **keeping(version)).vanish()  # The same session, lost without a will.
    broker.service("client", version=version, clean_start=True)  # And ended.
    broker.advance(4000)
    assert watcher.received() == []
