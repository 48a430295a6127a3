"""Every packet in every state: what comes of it is legal, or the end of the connection, and nobody else notices."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from broker.engine.replay import PORTION
from broker.mqtt.codes import ProtocolVersion
from broker.mqtt.packets import Connect, Pingreq, Pingresp, Publish, Pubrec
from tests.support.bad_packets import BAD_PACKETS
from tests.support.packet_cases import PACKET_CASES
from tests.support.pki import shared_service
from tests.support.wire import V5, V31, V311, MemoryBroker, WireClient, publication

TOPIC = "fleet/meters/meter-1/state"


def kept(version: ProtocolVersion) -> dict[str, object]:
    return {"clean_start": False} | ({"session_expiry_interval": 600} if version is V5 else {})


def stranger(broker: MemoryBroker, version: ProtocolVersion) -> WireClient:
    return broker.open(shared_service("client"), version=version)


def connected(broker: MemoryBroker, version: ProtocolVersion) -> WireClient:
    return broker.service("client", version=version, **kept(version))


def publishing_at_qos_2(broker: MemoryBroker, version: ProtocolVersion) -> WireClient:
    client = connected(broker, version)
    client.send(publication("fleet/meters/meter-1/cmd/x", b"1", 2, packet_id=7))
    return client


def owing(qos: int) -> Callable[[MemoryBroker, ProtocolVersion], WireClient]:
    """A client that has got a message and not answered it."""

    def build(broker: MemoryBroker, version: ProtocolVersion) -> WireClient:
        client = connected(broker, version)
        client.subscribe("fleet/#", qos=qos)
        broker.device("meter-1").publish(TOPIC, b"1", qos=qos)
        assert isinstance(client.received()[-1], Publish)
        return client

    build.__name__ = f"owing_an_answer_at_qos_{qos}"
    return build


def released(broker: MemoryBroker, version: ProtocolVersion) -> WireClient:
    client = owing(2)(broker, version)
    client.send(Pubrec(1))
    return client


def back_with_messages(broker: MemoryBroker, version: ProtocolVersion) -> WireClient:
    client = owing(2)(broker, version)
    client.vanish()
    broker.device("meter-1").publish(TOPIC, b"2", qos=1)
    return connected(broker, version)


def choked(broker: MemoryBroker, version: ProtocolVersion) -> WireClient:
    client = owing(1)(broker, version)
    client.connection.choke(client.broker.now)
    broker.device("meter-1").publish(TOPIC, b"2", qos=1)
    return client


def replaying(broker: MemoryBroker, version: ProtocolVersion) -> WireClient:
    meter = broker.device("meter-1")
    for number in range(10):
        meter.publish(f"{TOPIC}/{number}", bytes(PORTION // 3), retain=True)
    client = connected(broker, version)
    client.transport.unsent = True
    client.subscribe("fleet/#")
    assert broker.engine.replays.waiting
    return client


STATES = [
    *(stranger, connected, publishing_at_qos_2, owing(1), owing(2), released, back_with_messages, choked, replaying)
]
PACKETS = [(case.version, case.name, case.data) for case in PACKET_CASES]
PACKETS += [(bad.version, f"bad: {bad.rule}", bad.data) for bad in BAD_PACKETS]


@pytest.mark.parametrize("version", [V31, V311, V5], ids=lambda version: version.name)
@pytest.mark.parametrize("state", STATES, ids=lambda state: state.__name__)
def test_every_packet_ends_legal_or_closed(
    state: Callable[[MemoryBroker, ProtocolVersion], WireClient], version: ProtocolVersion
) -> None:
    for spoken, name, data in PACKETS:
        if spoken is not version:
            continue
        broker = MemoryBroker()
        watcher = broker.service("watcher")
        client = state(broker, version)
        before = broker.engine.connected
        client.received()
        client.send_bytes(data)
        if state is stranger:
            if client.connection.session is None:
                assert client.closed, name  # Nothing but a CONNECT that is admitted keeps it.
            else:
                assert data[0] == Connect.packet_type << 4, name
        elif client.closed:
            assert client.connection.session is None, name
            assert broker.engine.connected == before - 1, name
        else:
            assert broker.engine.connected == before, name
            client.received()
            client.send(Pingreq())
            assert Pingresp() in client.received(), name
        watcher.send(Pingreq())
        assert watcher.received() == [Pingresp()], name
        broker.advance(30)
        assert watcher.session.connected, name
