"""The listening socket: accepts and counts connections, and gives each its transport.

Rules
-----
1. At most `max_connections` in all: what exceeds it is closed before TLS, and counted; clients that only wait for a
   place are closed before newcomers are. Also closed are connections from an address or a network from which too many
   have led to nothing (`broker.door.strangers`).
2. At most `max_unadmitted` have a place before they are admitted; further ones are accepted and wait
   (`broker.door.reception`). At most `max_connection_rate` are accepted per second: the others wait in the kernel's
   queue, where they cost nothing. They also wait there while connected clients keep the broker busy (`max_loop_lag`),
   except for one every tenth of a second: a broker that is always busy admits slowly rather than never.
3. Nobody is accepted while newcomers who have sent data wait to be served: new ones wait in the kernel's queue, where
   no deadline runs and no limit counts. A bounded number of connections is accepted per turn, so that connected devices
   are served in between; when the process has no descriptors left, none for a second. While more wait than a turn
   accepts, those that have already left are closed before TLS: a key exchange for each of them would keep the others
   waiting, and the kernel's queue is served in order.
4. Nobody is accepted before the first `begin`: the server calls it when it knows which certificates are revoked.
5. A connection from a network of `proxies` begins with a PROXY header (`provisioning.program.proxy_arrivals`), and has
   the address that this says: who is refused or waits is decided when it is known. Until then it counts for no address,
   has a bound of its own (`Reception.most_unnamed`), and is not one of `max_connections`. If it becomes known between
   turns, the connection waits for the next one, as in the kernel's queue, and before those.
6. The TLS context can be replaced at any time; the new one applies to the next connection, and the old one's sessions
   are forgotten.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import ssl
from collections import deque
from collections.abc import Callable
from enum import Enum
from typing import TYPE_CHECKING, Final

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
from provisioning.pki.address_key import plain
from provisioning.pki.identity import Identity
from provisioning.pki.resumption import forget_sessions
from provisioning.pki.tcp_state import has_left
from provisioning.program.host_and_port import with_port
from provisioning.program.proxy_arrivals import ProxyArrivals
from provisioning.program.proxy_networks import ProxyNetworks, networks
from provisioning.program.unbound_socket import unbound

if TYPE_CHECKING:
    from broker.sockets.websocket import WebSocket

log = structlog.get_logger("broker")

_ACCEPTS_A_TURN = 32
_LOOKS_A_TURN: Final = 256
"""Connections accepted per turn that get no place and are not served; each costs some microseconds."""
_BACKLOG: Final = 4096
_PAUSE = 1.0
_FULL_PAUSE = 0.02
_BUSY_PAUSE = 0.1
_EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


class Speaks(Enum):
    """The protocol of a listener."""

    MQTT = "mqtts"
    WEBSOCKET = "wss"
    UNSAFE_PLAIN = "mqtt"


class Doors:
    """All connections: those that are admitted, some of whom doze, and the newcomers of each listener."""

    def __init__(self, admitted: Poller, doze: Doze) -> None:
        self._admitted = admitted
        self._doze = doze
        self._lobbies: list[Lobby] = []

    def open(self, loop: asyncio.AbstractEventLoop, turn: Turn, limits: Callable[[], Limits]) -> Lobby:
        """Return the lobby for one more listener."""
        lobby = Lobby(loop, turn, self._admitted, limits)
        self._lobbies.append(lobby)
        return lobby

    @property
    def connections(self) -> int:
        """How many connections there are, admitted or not, including those that wait for a place."""
        newcomers = sum(len(each) + len(each.waiting) for each in self._lobbies)
        return len(self._admitted) + len(self._doze) + newcomers

    def gives_way(self, lobby: Lobby, source: Source) -> Waiting | None:
        """Take out a waiting client for a newcomer to *lobby* from *source*; None: the newcomer has to go itself."""
        rooms = [lobby.waiting, *(each.waiting for each in self._lobbies)]
        return max(rooms, key=len).gives_way(source)

    async def drained(self, patience: float) -> None:
        """Close all connections cleanly; those not gone after *patience* seconds are aborted."""
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
        """Serve with *context*; *unsafe_identity* is the identity given to all clients of a plain listener.

        *limits* returns this listener's limits, given the broker's; web pages of *origins* may open a WebSocket.
        """
        self._loop = loop
        self._engine = engine
        self._own_limits = limits
        self._common = engine.limits
        self._websocket: type[WebSocket] | None = None
        if speaks is Speaks.WEBSOCKET:
            from broker.sockets.websocket import WebSocket  # Imports wsproto and h11, which other listeners don't need.

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
        self._crowded = False
        """Whether the last turn left connections in the kernel's queue."""
        self._speaks = speaks
        self._unsafe_identity = unsafe_identity
        self._context = context
        self.origins = origins
        self._proxy_names: tuple[str, ...] = ()
        self._proxies: ProxyNetworks | None = None
        self._arrivals = ProxyArrivals(loop, self._arrived, lambda host: self._reception.unnamed(host, loop.time()))
        self._named: deque[tuple[socket.socket, Address | None]] = deque()
        """Accepted connections of proxies, with the addresses in their headers, which wait for a turn."""
        self._paused = False
        self._wakes = False
        """Whether a turn for those was requested."""
        self._socket: socket.socket | None = None
        self.url = ""

    @property
    def context(self) -> ssl.SSLContext:
        """The TLS context of the next connection."""
        return self._context

    @context.setter
    def context(self, context: ssl.SSLContext) -> None:
        if context is not self._context:
            forget_sessions(self._context)  # Otherwise they would stay as long as any connection that uses it.
        self._context = context

    @property
    def origins(self) -> Origins:
        """Whose web pages may open a WebSocket from now on."""
        return self._origins

    @origins.setter
    def origins(self, origins: Origins) -> None:
        if origins.unsafe_any and self._websocket is not None:
            log.warning("any web page may connect with the client certificate of its visitor", code="UNSAFE_ANY_ORIGIN")
        self._origins = origins

    @property
    def proxies(self) -> tuple[str, ...]:
        """The networks whose connections begin with a PROXY header from now on, as in the settings."""
        return self._proxy_names

    @proxies.setter
    def proxies(self, names: tuple[str, ...]) -> None:
        self._proxy_names, self._proxies = names, networks(names)

    def _limits(self) -> Limits:
        common = self._engine.limits
        if common is not self._common:  # Called three times per connection; changes only after a reload.
            self._common, self._held = common, self._own_limits(common)
        return self._held

    def open(self, host: str, port: int) -> None:
        """Listen on *host* and *port* (0: any free one); `url` gives the result.

        Raises `OSError`, and `TypeError` for a name that cannot be looked up at all.

        Connections wait in the kernel's queue until `begin`.
        """
        listening = unbound(host)
        try:
            # Options set here apply to every accepted connection (tcp(7)), at no cost per connection.
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
        self.url = f"{self._speaks.value}://{with_port(host, bound)}"

    def begin(self) -> None:
        """Accept connections from now on."""
        if self._socket is not None:
            self._loop.add_reader(self._socket.fileno(), self._accept)

    def stop_accepting(self) -> None:
        """Close the listening socket and the connections that wait for a place; others stay."""
        if self._socket is not None:
            self._loop.remove_reader(self._socket.fileno())
            self._socket.close()
            self._socket = None
            self._lobby.waiting.close()
            self._arrivals.close()
            while self._named:
                self._named.popleft()[0].close()

    def _accept(self) -> None:
        lobby = self._lobby
        if lobby.behind:
            lobby.behind = False  # The loop asks again at once, and the lobby sets it again if it still applies.
            if lobby.waiting:
                self._pause(SECONDS_A_TURN)  # They trigger no event. By then the lobby has had a turn and updated it.
            elif self._named:
                self._wake()
            return
        now = self._loop.time()
        busy = self._engine.metrics.loop_lag > self._limits().max_loop_lag
        self._reception.begin_turn(1 if busy else _ACCEPTS_A_TURN, now)
        room, pause = self._room(now, busy=busy)
        try:
            left = self._crowded = self._take_in(room, now)
        except OSError as error:
            log.warning("accept failed", code="ACCEPT_FAILED", detail=error.strerror, retry_in=_PAUSE)
            self._pause(_PAUSE)
            return
        if left and room < _ACCEPTS_A_TURN:  # Otherwise those left in the queue would wake us at once, in vain.
            self._engine.metrics.accepts_paused += 1
            self._pause(pause)
        elif lobby.waiting:
            self._pause(pause)
        elif self._named:
            self._wake()

    def _take_in(self, room: int, now: float) -> bool:
        """Accept at most *room*; return whether more may be left. Raises `OSError` if no descriptor is left."""
        served = 0
        for _ in range(room):
            if self._socket is None:
                return False
            try:
                accepted, address = self._named.popleft() if self._named else self._taken(self._socket)
            except BlockingIOError:
                return False
            except OSError as error:
                if error.errno in _EXHAUSTED:
                    raise
                continue  # The peer left before it was accepted.
            if address is None:
                continue
            if self._crowded and has_left(accepted):
                self._reception.left(accepted, address[0], now)
                continue
            served += self._reception.receive(accepted, address, now)
            if served == _ACCEPTS_A_TURN:
                break
        return True

    def _taken(self, listening: socket.socket) -> tuple[socket.socket, Address | None]:
        """Accept one, and return its client's address too; None: a proxy has not said it yet, or was refused."""
        accepted, address = accept(listening)
        self._engine.metrics.connections_accepted += 1
        self._rate.take()
        peer: Address = plain(address[0]), address[1]
        if self._proxies is None or peer[0] not in self._proxies:
            return accepted, peer
        seconds, most = self._limits().handshake_timeout, self._reception.most_unnamed
        return accepted, self._arrivals.take(accepted, peer, seconds, most)

    def _arrived(self, accepted: socket.socket, client: Address) -> None:
        """Take note that the header of a connection has come, and that it is *client*'s."""
        self._named.append((accepted, client))
        self._wake()

    def _wake(self) -> None:
        """Have a turn soon: nothing in the kernel's queue causes one."""
        if not self._wakes:
            self._wakes = True
            self._loop.call_soon(self._woken)

    def _woken(self) -> None:
        self._wakes = False
        if self._socket is not None and not self._paused and self._named:
            self._accept()

    def _room(self, now: float, *, busy: bool) -> tuple[int, float]:
        """Return how many may be accepted now, and after what pause to check again if some are left."""
        limits, lobby = self._limits(), self._lobby
        room, pause = _ACCEPTS_A_TURN, _FULL_PAUSE
        if self._reception.full:
            room = 0
        elif self._crowded or lobby.waiting or len(lobby) >= limits.max_unadmitted:
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
        """Accept nobody for *seconds*."""
        if self._socket is not None:
            self._paused = True
            self._loop.remove_reader(self._socket.fileno())
            self._loop.call_later(seconds, self._go_on)

    def _go_on(self) -> None:
        self._paused = False
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
        except OSError:  # The peer left between accept and here.
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
