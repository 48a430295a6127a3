"""Chapter 6: WebSocket, with wsproto's client and the broker's layer between it and a real connection."""

from __future__ import annotations

import pytest
from wsproto import ConnectionType, WSConnection
from wsproto.events import (
    AcceptConnection,
    BytesMessage,
    CloseConnection,
    Event,
    RejectConnection,
    RejectData,
    Request,
    TextMessage,
)

from broker.connection.connection import ClientConnection
from broker.mqtt.codes import ProtocolVersion
from broker.sockets.websocket import WebSocket
from tests.conformance.scene import raw_connect
from tests.support.pki import shared_service
from tests.support.wire import FakeTransport, MemoryBroker


class SocketTransport(FakeTransport):
    """The TLS transport under a WebSocket, whose peer takes everything."""

    choked = False


class WebSocketClient:
    """A WebSocket client on the broker; MQTT is written by hand."""

    def __init__(self, broker: MemoryBroker, *subprotocols: str) -> None:
        self._broker = broker
        self.transport = SocketTransport()
        self._server = WebSocket(self.transport, broker.metrics, broker.engine.turn)
        self._server.serve(ClientConnection(broker.engine, self._server, broker.now))
        self._server.secured(shared_service("client").der, broker.now, broker.wall)
        self._client = WSConnection(ConnectionType.CLIENT)
        self.answers = self.send(Request(host="localhost", target="/", subprotocols=list(subprotocols)))

    def send(self, *events: Event) -> list[Event]:
        """Send *events* in one read; return what the broker sends."""
        turn = self._broker.engine.turn
        turn.begin()
        self._server.receive(b"".join(map(self._client.send, events)), self._broker.now)
        turn.end()
        self._broker.settle()
        self._client.receive_data(b"".join(self.transport.packets))
        self.transport.packets.clear()
        return list(self._client.events())


PING, PONG = b"\xc0\0", b"\xd0\0"


@pytest.fixture
def client(broker: MemoryBroker) -> WebSocketClient:
    return WebSocketClient(broker, "other", "mqtt")


def data(events: list[Event]) -> bytes:
    assert all(isinstance(event, BytesMessage) for event in events), events
    return b"".join(event.data for event in events if isinstance(event, BytesMessage))


def test_mqtt5_6_0_0_1_mqtt311_6_0_0_1_packets_travel_in_binary_frames(
    client: WebSocketClient, version: ProtocolVersion
) -> None:
    """Packets travel in binary WebSocket frames; any other frame closes the connection."""
    assert data(client.send(BytesMessage(raw_connect(version))))[0] == 0x20
    assert data(client.send(BytesMessage(PING))) == PONG
    (answer,) = client.send(TextMessage("hello"))
    assert isinstance(answer, CloseConnection)
    assert client.transport.closed


def test_mqtt5_6_0_0_2_mqtt311_6_0_0_2_packets_and_frames_are_cut_apart(
    client: WebSocketClient, version: ProtocolVersion
) -> None:
    """Packets are not aligned on WebSocket frames."""
    packet = raw_connect(version) + PING + PING
    cut = [client.send(BytesMessage(packet[index : index + 1])) for index in range(len(packet) - 1)]
    assert [data(answer)[0] for answer in cut if answer] == [0x20, 0xD0]
    assert data(client.send(BytesMessage(packet[-1:] + PING + PING[:1], message_finished=False))) == PONG * 2
    assert data(client.send(BytesMessage(PING[1:]))) == PONG


@pytest.mark.parametrize("offered", [(), ("other",), ("MQTT",)])
def test_mqtt5_6_0_0_3_mqtt311_6_0_0_3_a_client_that_does_not_offer_mqtt_is_refused(
    broker: MemoryBroker, offered: tuple[str, ...]
) -> None:
    """A client offers the subprotocol 'mqtt'."""
    refused = WebSocketClient(broker, *offered)
    assert isinstance(refused.answers[0], RejectConnection)
    assert all(isinstance(answer, RejectConnection | RejectData) for answer in refused.answers)
    assert refused.transport.closed


@pytest.mark.parametrize("offered", [("mqtt",), ("other", "mqtt"), ("mqtt", "other")])
def test_mqtt5_6_0_0_4_mqtt311_6_0_0_4_mqtt_is_selected(broker: MemoryBroker, offered: tuple[str, ...]) -> None:
    """The server selects the subprotocol 'mqtt'."""
    (answer,) = WebSocketClient(broker, *offered).answers
    assert isinstance(answer, AcceptConnection)
    assert answer.subprotocol == "mqtt"
