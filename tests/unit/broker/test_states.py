"""Every packet in every state: what comes of it is legal, or the end of the connection, and nobody else notices."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from broker.engine.replay import PORTION
from broker.mqtt.codes import PacketType, ProtocolVersion
from broker.mqtt.packets import Connect, Pingreq, Pingresp, Puback, Publish, Pubrec
from tests.support.bad_packets import BAD_PACKETS
from tests.support.packet_cases import PACKET_CASES
from tests.support.pki import shared_service
from tests.support.stored import StoredBroker
from tests.support.websocket_wire import WebSocketBroker
from tests.support.wire import KEPT, V5, V31, V311, MemoryBroker, WireClient, publication

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


def waiting_for_the_store(broker: MemoryBroker, version: ProtocolVersion) -> WireClient:
    """A client whose PUBLISH at QoS 1 is not answered before the message for another session is on disk."""
    broker.service("kept", **KEPT).subscribe("fleet/#", qos=1)
    broker.service("kept", **KEPT).vanish()
    client = connected(broker, version)
    broker.held = True  # type: ignore[attr-defined] # its broker is a `StoredBroker`
    client.send(publication("fleet/meters/meter-1/cmd/x", b"1", 1, packet_id=7))
    assert client.received() == []
    return client


STATES = [
    *(stranger, connected, publishing_at_qos_2, owing(1), owing(2), released, back_with_messages, choked, replaying)
]
PACKETS = [(case.version, case.name, case.data) for case in PACKET_CASES]
# Every packet but CONNECT is in MQTT 3.1 what it is in 3.1.1.
PACKETS += [
    (V31, f"{case.name}, in MQTT 3.1", case.data)
    for case in PACKET_CASES
    if case.version is V311 and not isinstance(case.packet, Connect)
]
PACKETS += [(bad.version, f"bad: {bad.rule}", bad.data) for bad in BAD_PACKETS]


VERSIONS = pytest.mark.parametrize("version", [V31, V311, V5], ids=lambda version: version.name)


def test_every_version_has_every_packet_that_a_client_sends() -> None:
    def kinds(version: ProtocolVersion) -> set[int]:
        return {data[0] >> 4 for spoken, name, data in PACKETS if spoken is version and not name.startswith("bad")}

    sent = {kind.value for kind in PacketType if kind is not PacketType.AUTH}
    for version in (V31, V311, V5):
        assert sent <= kinds(version), version


@VERSIONS
@pytest.mark.parametrize("state", STATES, ids=lambda state: state.__name__)
@pytest.mark.parametrize("broker_type", [MemoryBroker, WebSocketBroker])
def test_every_packet_ends_legal_or_closed(
    broker_type: type[MemoryBroker],
    state: Callable[[MemoryBroker, ProtocolVersion], WireClient],
    version: ProtocolVersion,
) -> None:
    for spoken, name, data in PACKETS:
        if spoken is version:
            judge(broker_type(), state, version, name, data)


@VERSIONS
def test_every_packet_to_a_broker_that_waits_for_its_store(tmp_path: Path, version: ProtocolVersion) -> None:
    for number, (spoken, name, data) in enumerate(PACKETS):
        if spoken is version:
            (folder := tmp_path / str(number)).mkdir()
            broker = StoredBroker(folder)
            client = judge(broker, waiting_for_the_store, version, name, data)
            broker.held = False
            broker.settle()
            if not client.closed:  # What it was promised comes, whatever it has sent meanwhile.
                assert 7 in [each.packet_id for each in client.received() if isinstance(each, Puback)], name
            broker.close()


def judge(
    broker: MemoryBroker,
    state: Callable[[MemoryBroker, ProtocolVersion], WireClient],
    version: ProtocolVersion,
    name: str,
    data: bytes,
) -> WireClient:
    """Send *data* in that *state*; return the client."""
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
    return client
