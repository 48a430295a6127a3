"""`TlsClient` over WebSocket: the same packets, in frames."""

from __future__ import annotations

from typing import Any

from wsproto import ConnectionType, WSConnection
from wsproto.events import AcceptConnection, BytesMessage, CloseConnection, Request

from tests.support.pki import Held, Pki
from tests.support.tls_client import TlsClient


class Framed:
    """A socket whose bytes travel in WebSocket frames."""

    def __init__(self, secure: Any) -> None:
        self._secure = secure
        self._websocket = WSConnection(ConnectionType.CLIENT)
        secure.sendall(self._websocket.send(Request(host="localhost", target="/", subprotocols=["mqtt"])))
        while not any(isinstance(event, AcceptConnection) for event in self._events()):
            pass

    def _events(self) -> list[Any]:
        self._websocket.receive_data(self._secure.recv(65536) or None)
        return list(self._websocket.events())

    def sendall(self, data: bytes) -> None:
        self._secure.sendall(self._websocket.send(BytesMessage(data)))

    def recv(self, _size: int) -> bytes:
        while True:
            data = b""
            for event in self._events():
                if isinstance(event, BytesMessage):
                    data += bytes(event.data)
                elif isinstance(event, CloseConnection):
                    return data
            if data:
                return data

    def settimeout(self, seconds: float) -> None:
        self._secure.settimeout(seconds)

    def close(self) -> None:
        self._secure.close()


def upgraded(port: int, pki: Pki, held: Held) -> TlsClient:
    """Return a client of the WebSocket listener on *port*."""
    client = TlsClient(port, pki.anchors, held.credential)
    client.socket = Framed(client.socket)  # type: ignore[assignment]
    return client
