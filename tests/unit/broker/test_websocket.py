"""WebSocket frames above a fake transport: cut anywhere, ended once."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from wsproto import ConnectionType, WSConnection
from wsproto.events import AcceptConnection, BytesMessage, CloseConnection, Event, Ping, Pong, Request, TextMessage

from broker.connection import ClientConnection
from broker.mqtt.disconnect import Disconnect
from broker.mqtt.packets import Pingreq
from broker.mqtt.ping import Pingresp
from broker.websocket import WebSocket
from tests.support.pki import shared_device
from tests.support.wire import V5, FakeTransport, MemoryBroker, connect_packet


class Wire(FakeTransport):
    """The TLS transport under the WebSocket."""

    choked = False

    def close(self) -> None:
        self.closed = True


class Browser:
    """A WebSocket client."""

    def __init__(self, broker: MemoryBroker) -> None:
        self.broker = broker
        self.wire = Wire()
        self.server = WebSocket(self.wire, broker.metrics)
        self.connection = ClientConnection(broker.engine, self.server, broker.now)
        self.server.serve(self.connection)
        self.server.secured(shared_device("meter-1").der, broker.now, datetime.now(UTC))
        self.websocket = WSConnection(ConnectionType.CLIENT)

    def send(self, *events: Event, step: int = 0) -> list[Event]:
        """Send *events* in one read, or *step* bytes a read; return what comes back."""
        data = b"".join(self.websocket.send(event) for event in events)
        for start in range(0, len(data), step or len(data)):
            if not self.wire.closed:
                self.server.receive(data[start : start + (step or len(data))], self.broker.now)
        self.broker.engine.turn.end()
        self.broker.settle()
        self.websocket.receive_data(b"".join(self.wire.packets))
        self.wire.packets.clear()
        return list(self.websocket.events())

    def upgrade(self) -> Event:
        (event,) = self.send(Request(host="h", target="/mqtt", subprotocols=["mqtt"]))
        return event


CONNECT = connect_packet(V5, client_id="meter-1").encode()


@pytest.fixture
def browser() -> Browser:
    made = Browser(MemoryBroker())
    assert isinstance(made.upgrade(), AcceptConnection)
    return made


def test_packets_and_frames_need_not_agree(browser: Browser) -> None:
    ping = Pingreq().encode(V5)
    frames = [BytesMessage(CONNECT[:5]), BytesMessage(CONNECT[5:] + ping + ping[:1]), BytesMessage(ping[1:])]
    events = browser.send(*frames, step=3)
    data = b"".join(event.data for event in events if isinstance(event, BytesMessage))
    assert data.endswith(Pingresp().encode(V5) * 2)
    assert browser.broker.engine.connected == 1


def test_a_ping_is_answered(browser: Browser) -> None:
    assert browser.send(Ping(b"abc")) == [Pong(b"abc")]


def test_nothing_behind_the_end_is_read(browser: Browser) -> None:
    browser.send(BytesMessage(CONNECT), BytesMessage(Disconnect().encode(V5)), BytesMessage(CONNECT))
    assert browser.wire.closed
    assert browser.broker.engine.connected == 0
    assert browser.broker.metrics.admitted == 1


@pytest.mark.parametrize(
    ("event", "code"), [(TextMessage("x"), "BAD_PACKET"), (CloseConnection(code=1000), "CLIENT_CLOSED")]
)
def test_the_end_of_the_websocket_is_the_end_of_the_connection(browser: Browser, event: Event, code: str) -> None:
    browser.send(BytesMessage(CONNECT))
    browser.send(event)
    assert browser.wire.closed
    assert browser.broker.metrics.closed == {code: 1}


def test_a_frame_that_is_none_ends_it(browser: Browser) -> None:
    browser.send(BytesMessage(CONNECT))
    browser.server.receive(b"\xff" * 20, browser.broker.now)
    assert browser.wire.closed
    assert browser.broker.engine.connected == 0


def test_a_choked_websocket_drops_qos0(browser: Browser) -> None:
    browser.wire.choked = True
    browser.server.write([b"\x30\x03\x00\x01t"])
    assert not browser.wire.packets
    assert browser.broker.metrics.dropped_slow_consumer == 1
    browser.server.write([b"\x40\x02\x00\x01"])
    assert len(browser.wire.packets) == 1
