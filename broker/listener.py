"""The listening socket: accepts, counts, and hands each connection its transport.

Rules
-----
1. At most *max_connections* in all, and *max_unadmitted* that have not been let in yet: a flood of strangers does not
   shut out the fleet's memory. What exceeds a limit is closed before TLS, and counted.
2. A bounded number of connections is accepted a turn, so that connected devices are served between two of them; when
   the process has no descriptors left, none for a second, and the connected ones are served all the same.
3. The TLS context can be replaced at any time; it takes effect for the next connection, and the old context's session
   tickets are worth nothing under the new one.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import ssl
from enum import Enum

import structlog

from broker.admission.refusal import RefusalCode
from broker.connection import ClientConnection
from broker.engine import Engine
from broker.poller import Poller
from broker.tls_session import TlsSession, open_tls
from broker.transport import TlsTransport
from broker.unsafe_plain import UnsafePeer, UnsafePlainSession
from broker.websocket import WebSocket
from provisioning.pki.identity import Identity

log = structlog.get_logger("broker")

_ACCEPTS_A_TURN = 32
_BACKLOG = 4096
_PAUSE = 1.0
_EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


class Speaks(Enum):
    """What is spoken on a listener."""

    MQTT = "mqtts"
    WEBSOCKET = "wss"
    UNSAFE_PLAIN = "mqtt"


class Listener:
    """One listening address."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        engine: Engine,
        poller: Poller,
        context: ssl.SSLContext,
        speaks: Speaks = Speaks.MQTT,
        unsafe_identity: Identity | None = None,
    ) -> None:
        """Serve with *context*; *unsafe_identity* is whom the clients of a plain listener are taken for."""
        self._loop = loop
        self._engine = engine
        self._poller = poller
        self._speaks = speaks
        self._unsafe_identity = unsafe_identity
        self.context = context
        self._socket: socket.socket | None = None
        self.url = ""

    def open(self, host: str, port: int) -> None:
        """Listen on *host* and *port* (0: any free one); `url` says where. Raises `OSError`."""
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listening = socket.socket(family, socket.SOCK_STREAM)
        try:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            # What is set here holds for every connection that is accepted (tcp(7)), and costs each of them nothing.
            listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            listening.setblocking(False)
            listening.bind((host, port))
            listening.listen(_BACKLOG)
        except OSError:
            listening.close()
            raise
        self._socket = listening
        self._loop.add_reader(listening.fileno(), self._accept)
        bound = listening.getsockname()[1]
        self.url = f"{self._speaks.value}://{f'[{host}]' if ':' in host else host}:{bound}"

    def stop_accepting(self) -> None:
        """Close the listening socket; connections stay."""
        if self._socket is not None:
            self._loop.remove_reader(self._socket.fileno())
            self._socket.close()
            self._socket = None

    def _accept(self) -> None:
        engine, limits = self._engine, self._engine.limits
        for _ in range(_ACCEPTS_A_TURN):
            if self._socket is None:
                return
            try:
                accepted, address = self._socket.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in _EXHAUSTED:
                    self._pause(error)
                    return
                continue  # The peer has gone before it was accepted.
            engine.metrics.connections_accepted += 1
            connections = len(self._poller)
            if connections >= limits.max_connections or connections - engine.connected >= limits.max_unadmitted:
                engine.metrics.refused[RefusalCode.TOO_MANY_CONNECTIONS] += 1
                engine.history.turned_away(address[0], RefusalCode.TOO_MANY_CONNECTIONS, self._loop.time())
                accepted.close()
                continue
            self._serve(accepted, address[:2])

    def _pause(self, error: OSError) -> None:
        """Accept nobody for a moment: the loop would call again at once, and again, for as long as nothing is free."""
        log.warning("accept failed", code="ACCEPT_FAILED", detail=error.strerror, retry_in=_PAUSE)
        if self._socket is not None:
            self._loop.remove_reader(self._socket.fileno())
            self._loop.call_later(_PAUSE, self._accept_again)

    def _accept_again(self) -> None:
        if self._socket is not None:
            self._loop.add_reader(self._socket.fileno(), self._accept)

    def _serve(self, accepted: socket.socket, address: tuple[str, int]) -> None:
        engine = self._engine
        tls: TlsSession
        try:
            accepted.setblocking(False)
            if self._speaks is Speaks.UNSAFE_PLAIN:
                tls = UnsafePlainSession(accepted)
            else:
                accepted, tls = open_tls(self.context, accepted)
        except OSError:  # The peer has gone between accept and here.
            accepted.close()
            return
        transport = TlsTransport(
            self._loop, accepted, tls, address, engine.metrics, self._poller, engine.turn, engine.limits.max_backlog
        )
        if self._speaks is Speaks.WEBSOCKET:
            websocket = WebSocket(transport, engine.metrics)
            websocket.serve(ClientConnection(engine, websocket, self._loop.time()))
            transport.start(websocket)
            return
        connection = ClientConnection(engine, transport, self._loop.time())
        if self._speaks is Speaks.UNSAFE_PLAIN and self._unsafe_identity is not None:
            transport.start(UnsafePeer(connection, self._unsafe_identity))
        else:
            transport.start(connection)
