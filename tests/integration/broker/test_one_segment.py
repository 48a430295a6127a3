"""A device whose whole conversation comes in one piece, behind the last bytes of its handshake."""

from __future__ import annotations

from pathlib import Path

import pytest

from broker.mqtt.codes import ReasonCode
from broker.mqtt.packets import Connack, Packet, Puback, decode_packet
from provisioning.pki.tls import client_context
from tests.support.broker_process import BrokerProcess
from tests.support.one_segment import OneSegmentClient
from tests.support.pki import Pki
from tests.support.wire import V5, connect_packet, publication


def packets(client: OneSegmentClient, count: int) -> list[Packet]:
    """Return the next *count* packets, none of which is longer than 127 bytes."""
    received: list[Packet] = []
    while len(received) < count:
        first, length = client.receive(2)
        received.append(decode_packet(first, client.receive(length), V5))
    return received


@pytest.mark.parametrize("messages", [1, 300])
def test_everything_is_acted_on_though_nothing_comes_after_it(
    broker: BrokerProcess, anchors: Path, pki: Pki, name: str, messages: int
) -> None:
    conversation = [connect_packet(V5, client_id=name).encode(V5)]
    for number in range(1, messages + 1):
        message = publication(f"fleet/meters/{name}/telemetry", b"x", 1, packet_id=number)
        conversation.append(message.encode(V5))
    context = client_context(anchors, pki.device(name).credential)
    with OneSegmentClient(broker.port, context, conversation) as client:
        connack, *answers = packets(client, 1 + messages)
        assert isinstance(connack, Connack)
        assert connack.reason_code is ReasonCode.SUCCESS
        assert [each.packet_id for each in answers if isinstance(each, Puback)] == list(range(1, messages + 1))
