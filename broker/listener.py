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
import contextlib
import errno
import socket
import ssl

import structlog

from broker.admission.refusal import RefusalCode
from broker.connection import ClientConnection
from broker.engine import Engine
from broker.poller import Poller
from broker.transport import TlsTransport

log = structlog.get_logger("broker")

_ACCEPTS_A_TURN = 32
_BACKLOG = 4096
_PAUSE = 1.0
_EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


class Listener:
    """An mTLS listener on one address."""

    def __init__(self, loop: asyncio.AbstractEventLoop, engine: Engine, context: ssl.SSLContext) -> None:
        self._loop = loop
        self._engine = engine
        self.context = context
        self._poller = Poller(loop, engine.turn)
        self._socket: socket.socket | None = None

    def open(self, host: str, port: int) -> int:
        """Listen on *host* and *port* (0: any free one); return the port. Raises `OSError`."""
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listening = socket.socket(family, socket.SOCK_STREAM)
        try:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.setblocking(False)
            listening.bind((host, port))
            listening.listen(_BACKLOG)
        except OSError:
            listening.close()
            raise
        self._socket = listening
        self._loop.add_reader(listening.fileno(), self._accept)
        return int(listening.getsockname()[1])

    def stop_accepting(self) -> None:
        """Close the listening socket; connections stay."""
        if self._socket is not None:
            self._loop.remove_reader(self._socket.fileno())
            self._socket.close()
            self._socket = None

    async def drained(self, patience: float) -> None:
        """Wait until every connection has closed, *patience* seconds at most; then close everything."""
        self._poller.empty.clear()
        if len(self._poller):
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._poller.empty.wait(), patience)
        self._poller.abort()
        self._poller.close()

    def _accept(self) -> None:
        engine, limits = self._engine, self._engine.limits
        for _ in range(_ACCEPTS_A_TURN):
            if self._socket is None:
                return
            try:
                accepted, _address = self._socket.accept()
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
                accepted.close()
                continue
            self._serve(accepted)

    def _pause(self, error: OSError) -> None:
        """Accept nobody for a moment: the loop would call again at once, and again, for as long as nothing is free."""
        log.warning("accept failed", code="ACCEPT_FAILED", detail=error.strerror, retry_in=_PAUSE)
        if self._socket is not None:
            self._loop.remove_reader(self._socket.fileno())
            self._loop.call_later(_PAUSE, self._accept_again)

    def _accept_again(self) -> None:
        if self._socket is not None:
            self._loop.add_reader(self._socket.fileno(), self._accept)

    def _serve(self, accepted: socket.socket) -> None:
        engine = self._engine
        try:
            accepted.setblocking(False)
            accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            accepted.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            transport = TlsTransport(
                self._loop,
                accepted,
                self.context,
                engine.metrics,
                self._poller,
                engine.turn,
                engine.limits.max_backlog,
            )
        except OSError:  # The peer has gone between accept and here.
            accepted.close()
            return
        transport.start(ClientConnection(engine, transport, self._loop.time()))
