"""A `WireClient` over WebSocket: the same packets in frames, above a fake transport."""

from __future__ import annotations

from collections.abc import Sequence

from wsproto import ConnectionType, WSConnection
from wsproto.events import AcceptConnection, BytesMessage, Event, Request

from broker.connection.connection import ClientConnection
from broker.mqtt.codes import ProtocolVersion
from broker.mqtt.framing import decode_length
from broker.settings.origins import NO_PAGES
from broker.sockets.websocket import WebSocket
from tests.support.pki import Held
from tests.support.wire import V5, FakeTransport, MemoryBroker, WireClient


class FramedTransport(FakeTransport):
    """The transport under the WebSocket: its `packets` are MQTT's, taken out of the frames that are written."""

    choked = False

    def __init__(self) -> None:
        super().__init__()
        self.websocket = WSConnection(ConnectionType.CLIENT)
        self.accepted = False
        self._unsplit = b""

    def write(self, packets: list[bytes]) -> None:
        assert not self.closed, "written after the end"
        self.writes += 1
        self.websocket.receive_data(b"".join(packets))
        for event in self.websocket.events():
            self.accepted = self.accepted or isinstance(event, AcceptConnection)
            if isinstance(event, BytesMessage):
                self._take(bytes(event.data))

    def _take(self, data: bytes) -> None:
        self._unsplit += data
        while len(self._unsplit) > 1:
            length, body = decode_length(self._unsplit, 1)
            if not body or len(self._unsplit) < body + length:
                return
            self.packets.append(self._unsplit[: body + length])
            self._unsplit = self._unsplit[body + length :]

    def close(self, last: Sequence[bytes] = ()) -> None:
        if last:
            self.write(list(last))
        self.closed = True  # The WebSocket may be closed by the connection and by itself.


class WebSocketClient(WireClient):
    """A client of the WebSocket listener, whose request was accepted."""

    transport: FramedTransport

    def __init__(
        self, broker: MemoryBroker, holder: Held | None, version: ProtocolVersion = V5, path: Sequence[bytes] = ()
    ) -> None:
        super().__init__(broker, holder, version, path, is_secured=False)
        self.transport = FramedTransport()
        self.transport.certificate = holder.der if holder is not None else None
        self.transport.path = path
        self.server = WebSocket(self.transport, broker.metrics, broker.engine.turn, NO_PAGES)
        self.connection = ClientConnection(broker.engine, self.server, broker.now)
        self.server.serve(self.connection)
        self.server.secured(self.transport.certificate, broker.now, broker.wall)
        self._send_event(Request(host="h", target="/mqtt", subprotocols=["mqtt"]))
        assert self.transport.accepted

    def send_bytes(self, data: bytes) -> None:
        """Let the broker read *data* in one frame."""
        if self.closed:
            super().send_bytes(data)
        else:
            self._send_event(BytesMessage(data))

    def _send_event(self, event: Event) -> None:
        frame = self.transport.websocket.send(event)
        self.broker.engine.turn.begin()
        self.server.receive(frame, self.broker.now)
        self.broker.engine.turn.end()
        self.broker.settle()

    def vanish(self) -> None:
        """Let the transport find that the peer is gone."""
        if not self.closed:
            self.transport.closed = True
            self.server.lost("CONNECTION_LOST", self.broker.now)
            self.broker.settle()


class WebSocketBroker(MemoryBroker):
    """A broker whose clients all come over WebSocket."""

    def open(self, holder: Held | None, *, version: ProtocolVersion = V5, path: Sequence[bytes] = ()) -> WireClient:
        return WebSocketClient(self, holder, version, path)
