"""Messages, packets and subscriptions as plugins see them: with everything that they had on the wire."""

from __future__ import annotations

import pytest

from broker.mqtt.codes import QoS
from broker.mqtt.message import Message
from broker.plugins.sessions import described
from broker.plugins.views import ReceivedMessage, SeenPacket, kept_message, subscriptions
from broker.session.session import Session
from tests.support.wire import MemoryBroker, publication


def test_a_message_has_the_flags_of_its_packet() -> None:
    message = ReceivedMessage("a", publication("a", b"1", QoS.AT_LEAST_ONCE, packet_id=7, retain=True, dup=True))
    assert (message.topic, bytes(message.data), message.qos, message.retain) == ("a", b"1", 1, True)
    packet = message.publish_packet
    assert (packet.topic_name, packet.packet_id, packet.dup_flag, packet.qos, packet.retain_flag) == (
        *("a", 7, True, 1, True),
    )
    again = ReceivedMessage("a", publication("a")).publish_packet
    assert (again.dup_flag, again.retain_flag) == (False, False)


def test_a_retained_message_has_its_qos() -> None:
    kept = kept_message(Message(b"a", b"1", QoS.EXACTLY_ONCE, retain=True))
    assert (kept.topic, bytes(kept.data), kept.qos) == ("a", b"1", 2)


@pytest.mark.parametrize(
    ("size", "remaining"),
    [(2, 0), (129, 127), (131, 128), (16_386, 16_383), (16_388, 16_384), (268_435_460, 268_435_455)],
)
def test_a_packet_has_its_type_its_flags_and_its_lengths(size: int, remaining: int) -> None:  # MQTT 5 §2.1.4
    packet = SeenPacket(0x3B, size)
    assert (packet.fixed_header.packet_type, packet.fixed_header.flags) == (3, 0b1011)
    assert (packet.bytes_length, packet.fixed_header.remaining_length) == (size, remaining)


def test_the_subscribers_of_a_filter_are_shown_with_the_qos_of_each(broker: MemoryBroker) -> None:
    for number, qos in enumerate((0, 1, 2)):
        broker.service(f"reader-{number}").subscribe("fleet/#", f"$share/group/fleet/{number}", qos=qos)

    def hosted(session: Session) -> object:
        return described(session, session.client_id, session.client_id)

    shown = subscriptions(broker.engine, hosted)  # type: ignore[arg-type]
    assert sorted(shown) == ["$share/group/fleet/0", "$share/group/fleet/1", "$share/group/fleet/2", "fleet/#"]
    readers = sorted((session.client_id, qos) for session, qos in shown["fleet/#"])
    assert readers == [("reader-0", 0), ("reader-1", 1), ("reader-2", 2)]
    assert [qos for _, qos in shown["fleet/#"][1:]] == [qos for _, qos in list(shown["fleet/#"])[1:]]
    assert len(shown["fleet/#"]) == 3
