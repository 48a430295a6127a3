"""The listening socket: accepts, counts, and hands each connection its transport.

Rules
-----
1. At most `max_connections` in all: what exceeds it is closed before TLS, and counted, one of those who only wait for a
   place before a newcomer. So is whoever comes from an address or a network of which too many have led to nothing
   (`broker.door.strangers`).
2. At most `max_unadmitted` have a place before they are let in: who else comes is looked at, and waits
   (`broker.door.reception`). At most `max_connection_rate` come in a second: the others wait in the kernel's queue,
   where they cost nothing. So they wait while the broker is busy with those who are connected (`max_loop_lag`), but for
   one every tenth of a second: a broker that is always busy admits slowly, and not never.
3. Nobody comes in while newcomers who have spoken wait to be served: they wait in the kernel's queue, where no deadline
   runs and no limit counts. A bounded number of connections is accepted a turn, so that connected devices are served
   between two of them; when the process has no descriptors left, none for a second.
4. Nobody comes in before the first `begin`: the server calls it when it knows who is revoked.
5. The TLS context can be replaced at any time; it takes effect for the next connection, and the old context's sessions
   are forgotten.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import ssl
from collections.abc import Callable
from enum import Enum
from typing import TYPE_CHECKING

import structlog

from broker.connection.connection import ClientConnection
from broker.door.connection_rate import ConnectionRate
from broker.door.lobby import SECONDS_A_TURN, Lobby
from broker.door.packet_watch import PacketWatch
from broker.door.reception import Address, Reception
from broker.door.strangers import Source
from broker.door.unsafe_plain import UnsafePeer, UnsafePlainSession
from broker.door.waiting_room import Waiting
from broker.engine.engine import Engine
from broker.settings.limits import Limits
from broker.settings.origins import NO_PAGES, Origins
from broker.sockets.byte_stream import ByteStream
from broker.sockets.doze import Doze
from broker.sockets.poller import Poller
from broker.sockets.tls_session import TlsSession, accept, open_tls
from broker.sockets.transport import TlsTransport
from broker.sockets.turn import Turn
from provisioning.pki.identity import Identity
from provisioning.pki.resumption import forget_sessions

if TYPE_CHECKING:
    from broker.sockets.websocket import WebSocket

log = structlog.get_logger("broker")

_ACCEPTS_A_TURN = 32
_LOOKS_A_TURN = 256
"""Who is accepted when there is no place and is not served costs some microseconds."""
_BACKLOG = 4096
_PAUSE = 1.0
_FULL_PAUSE = 0.02
_BUSY_PAUSE = 0.1
_EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


class Speaks(Enum):
    """What is spoken on a listener."""

    MQTT = "mqtts"
    WEBSOCKET = "wss"
    UNSAFE_PLAIN = "mqtt"


class Doors:
    """Everybody who is connected: those who are admitted, some of whom doze, and the newcomers of each listener."""

    def __init__(self, admitted: Poller, doze: Doze) -> None:
        self._admitted = admitted
        self._doze = doze
        self._lobbies: list[Lobby] = []

    def open(self, loop: asyncio.AbstractEventLoop, turn: Turn, limits: Callable[[], Limits]) -> Lobby:
        """Return the lobby of one more listener."""
        lobby = Lobby(loop, turn, self._admitted, limits)
        self._lobbies.append(lobby)
        return lobby

    @property
    def connections(self) -> int:
        """How many there are, admitted or not, those who wait for a place among them."""
        newcomers = sum(len(each) + len(each.waiting) for each in self._lobbies)
        return len(self._admitted) + len(self._doze) + newcomers

    def gives_way(self, lobby: Lobby, source: Source) -> Waiting | None:
        """Take out who waits where most do, for a newcomer to *lobby* from *source*; None if he is to go himself."""
        rooms = [lobby.waiting, *(each.waiting for each in self._lobbies)]
        return max(rooms, key=len).gives_way(source)

    async def drained(self, patience: float) -> None:
        """Close everybody politely; who is not gone after *patience* seconds is cut off."""
        await asyncio.gather(*(poller.drained(patience) for poller in (self._admitted, self._doze, *self._lobbies)))


class Listener:
    """One listening address."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        engine: Engine,
        doors: Doors,
        context: ssl.SSLContext,
        speaks: Speaks = Speaks.MQTT,
        unsafe_identity: Identity | None = None,
        limits: Callable[[Limits], Limits] = lambda common: common,
        origins: Origins = NO_PAGES,
    ) -> None:
        """Serve with *context*; *unsafe_identity* is whom the clients of a plain listener are taken for.

        *limits* returns this listener's own, given those of the broker; pages of *origins* may open a WebSocket.
        """
        self._loop = loop
        self._engine = engine
        self._own_limits = limits
        self._common = engine.limits
        self._websocket: type[WebSocket] | None = None
        if speaks is Speaks.WEBSOCKET:
            from broker.sockets.websocket import WebSocket  # And with it wsproto and h11, for who has such a listener.

            self._websocket = WebSocket
        self._held = limits(engine.limits)
        self._lobby = doors.open(loop, engine.turn, self._limits)
        self._reception = Reception(
            engine,
            self._lobby,
            self._limits,
            lambda: doors.connections,
            lambda source: doors.gives_way(self._lobby, source),
            self._serve,
        )
        self._rate = ConnectionRate(loop.time())
        self._speaks = speaks
        self._unsafe_identity = unsafe_identity
        self._context = context
        self.origins = origins
        self._socket: socket.socket | None = None
        self.url = ""

    @property
    def context(self) -> ssl.SSLContext:
        """What the next connection is served with."""
        return self._context

    @context.setter
    def context(self, context: ssl.SSLContext) -> None:
        if context is not self._context:
            forget_sessions(self._context)  # They would stay as long as one connection of that time does.
        self._context = context

    @property
    def origins(self) -> Origins:
        """Whose web pages may open a WebSocket from now on."""
        return self._origins

    @origins.setter
    def origins(self, origins: Origins) -> None:
        if origins.unsafe_any and self._websocket is not None:
            log.warning("any web page may connect as whoever reads it", code="UNSAFE_ANY_ORIGIN")
        self._origins = origins

    def _limits(self) -> Limits:
        common = self._engine.limits
        if common is not self._common:  # Asked thrice a connection, and others only after a reload.
            self._common, self._held = common, self._own_limits(common)
        return self._held

    def open(self, host: str, port: int) -> None:
        """Listen on *host* and *port* (0: any free one); `url` says where.

        Raises `OSError`, and `TypeError` for a name that cannot be looked up at all.

        Who comes waits in the kernel's queue, until `begin`.
        """
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
        except BaseException:
            listening.close()
            raise
        self._socket = listening
        bound = listening.getsockname()[1]
        self.url = f"{self._speaks.value}://{f'[{host}]' if ':' in host else host}:{bound}"

    def begin(self) -> None:
        """Accept from now on."""
        if self._socket is not None:
            self._loop.add_reader(self._socket.fileno(), self._accept)

    def stop_accepting(self) -> None:
        """Close the listening socket, and who waits for a place; connections stay."""
        if self._socket is not None:
            self._loop.remove_reader(self._socket.fileno())
            self._socket.close()
            self._socket = None
            self._lobby.waiting.close()

    def _accept(self) -> None:
        lobby = self._lobby
        if lobby.behind:
            lobby.behind = False  # The loop asks again at once, and the lobby says so again if it is so still.
            if lobby.waiting:
                self._pause(SECONDS_A_TURN)  # Those wake nobody. Until then the lobby has had a turn, and says it anew.
            return
        now = self._loop.time()
        busy = self._engine.metrics.loop_lag > self._limits().max_loop_lag
        self._reception.begin_turn(1 if busy else _ACCEPTS_A_TURN, now)
        room, pause = self._room(now, busy=busy)
        try:
            left = self._take_in(room, now)
        except OSError as error:
            log.warning("accept failed", code="ACCEPT_FAILED", detail=error.strerror, retry_in=_PAUSE)
            self._pause(_PAUSE)
            return
        if left and room < _ACCEPTS_A_TURN:  # Whoever is left in the queue would wake us at once, for nothing.
            self._engine.metrics.accepts_paused += 1
            self._pause(pause)
        elif lobby.waiting:
            self._pause(pause)

    def _take_in(self, room: int, now: float) -> bool:
        """Accept *room* at most; return whether more may be left. Raises `OSError` if the process has no descriptor."""
        served = 0
        for _ in range(room):
            if self._socket is None:
                return False
            try:
                accepted, address = accept(self._socket)
            except BlockingIOError:
                return False
            except OSError as error:
                if error.errno in _EXHAUSTED:
                    raise
                continue  # The peer has gone before it was accepted.
            self._engine.metrics.connections_accepted += 1
            self._rate.take()
            served += self._reception.receive(accepted, address[:2], now)
            if served == _ACCEPTS_A_TURN:
                break
        return True

    def _room(self, now: float, *, busy: bool) -> tuple[int, float]:
        """Return how many may be accepted now, and after what pause to look again if that is not all."""
        limits, lobby = self._limits(), self._lobby
        room, pause = _ACCEPTS_A_TURN, _FULL_PAUSE
        if self._reception.full:
            room = 0
        elif lobby.waiting or len(lobby) >= limits.max_unadmitted:
            room = _LOOKS_A_TURN
        if limits.max_connection_rate:
            allowed = self._rate.available(limits.max_connection_rate, now)
            if allowed < min(room, _ACCEPTS_A_TURN):
                pause = self._rate.pause(limits.max_connection_rate)
            room = min(room, allowed)
        if room > 0 and busy:
            room, pause = 1, _BUSY_PAUSE
        return room, pause

    def _pause(self, seconds: float) -> None:
        """Accept nobody for a moment."""
        if self._socket is not None:
            self._loop.remove_reader(self._socket.fileno())
            self._loop.call_later(seconds, self._go_on)

    def _go_on(self) -> None:
        if self._socket is not None:
            self.begin()
            self._accept()

    def _serve(self, accepted: socket.socket, address: Address) -> None:
        engine = self._engine
        tls: TlsSession
        try:
            if self._speaks is Speaks.UNSAFE_PLAIN:
                tls = UnsafePlainSession(accepted)
            else:
                accepted, tls = open_tls(self._context, accepted)
        except OSError:  # The peer has gone between accept and here.
            accepted.close()
            return
        transport = TlsTransport(
            self._loop, accepted, tls, address, engine.metrics, self._lobby, engine.turn, engine.limits.max_backlog
        )
        if self._websocket is not None:
            websocket = self._websocket(transport, engine.metrics, engine.turn, self._origins)
            websocket.serve(self._connection(websocket))
            transport.start(websocket)
            return
        if self._speaks is Speaks.UNSAFE_PLAIN and self._unsafe_identity is not None:
            connection = ClientConnection(engine, transport, self._loop.time())
            transport.start(UnsafePeer(connection, self._unsafe_identity))
        else:
            transport.start(self._connection(transport))

    def _connection(self, stream: ByteStream) -> ClientConnection | PacketWatch:
        engine, now = self._engine, self._loop.time()
        if engine.extension is not None and engine.extension.looks_at_packets:
            return PacketWatch(engine, stream, now)
        return ClientConnection(engine, stream, now)
